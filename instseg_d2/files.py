"""Writes files completely or not at all, and finds the cache folder."""

import contextlib
import functools
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from .errors import DatasetError

__all__ = ["cache_folder", "remove_unfinished", "temporary_home", "write_bytes", "write_json", "written_whole"]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def written_whole(path) -> Iterator[Path]:
    """
    A temporary file next to ``path`` to write to. It replaces ``path`` if the block succeeds and is removed if it
    fails, so that an incomplete file is never visible. The folder is created if missing.

    Raises:
        OSError: as the block raises it, with ``path`` as its filename where it has none (a full disk).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:40]}-", suffix=path.suffix)
    os.close(handle)
    try:
        os.chmod(temporary, 0o644)
        yield Path(temporary)
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def remove_unfinished(folder) -> None:
    """Remove the temporary files that killed processes left in a folder; nothing may be writing there."""
    for path in Path(folder).glob(".*"):
        if re.fullmatch(r"\..+-[a-z0-9_]{8}(\.\w+)?", path.name):
            path.unlink()


def write_bytes(path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_bytes(data)


@functools.cache  # it says so once
def temporary_home() -> Path:
    """A folder instead of the user's home, for a user whom the system does not know (``docker run --user``)."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir(), f"instseg_d2_{user}")
    logger.warning("No home folder can be written: cached files go to %s, or where INSTSEG_CACHE points.", folder)
    return folder


def _can_be_written(folder: str) -> bool:
    """True if ``folder``, absolute, exists and can be written or can be made."""
    while not os.path.exists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def cache_folder(*parts: str) -> Path:
    """
    The path of ``parts`` below ``$INSTSEG_CACHE`` or ``~/.cache/instseg_d2``, or below :func:`temporary_home` where
    there is no home or it cannot be written; nothing is created.
    """
    root = os.environ.get("INSTSEG_CACHE")
    if root:
        return Path(os.path.expanduser(root), *parts)
    folder = os.path.expanduser(os.path.join("~", ".cache", "instseg_d2"))
    return Path(folder if _can_be_written(folder) else temporary_home().joinpath(".cache", "instseg_d2"), *parts)


def write_json(path, content) -> None:
    """
    Write ``content`` as JSON to ``path``, whole or not at all.

    Raises:
        DatasetError: the folder cannot be written or is full; it names ``path`` and INSTSEG_CACHE.
    """
    try:
        write_bytes(path, json.dumps(content).encode())  # several times faster than json.dump
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be written ({error.strerror or error}); point INSTSEG_CACHE at a folder with space."
        ) from error
