"""Writes files completely or not at all, and finds the cache folder."""

import contextlib
import functools
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import DatasetError

__all__ = [
    "ListFile",
    "atomic_write",
    "cache_folder",
    "remove_unfinished",
    "temporary_home",
    "write_bytes",
    "write_json",
]

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_write(path) -> Iterator[Path]:
    """
    Yield a temporary file next to ``path``. It replaces ``path`` if the block succeeds and is removed if it fails, so
    an incomplete file is never visible. The folder is created if missing.

    Raises:
        OSError: from the block; its filename is set to ``path`` if it has none (full disk).
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
    """Remove the temporary files that killed processes left in a folder. No process may be writing there."""
    for path in Path(folder).glob(".*"):
        if re.fullmatch(r"\..+-[a-z0-9_]{8}(\.\w+)?", path.name):
            path.unlink()


def write_bytes(path, data: bytes) -> None:
    """Write ``data`` to ``path``, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(data)


class ListFile:
    """
    A JSON list. Until it is finished, its entries are in PATH + "l" (.jsonl), one per line and on disk as soon as they
    are added, so a killed run loses nothing.

    Attributes:
        path: path of the finished file.
        count: number of entries so far.

    Raises:
        OSError: the folder is not writable, or the disk is full.
    """

    def __init__(self, path):
        self.path = os.fspath(path)
        self.count = 0
        self._lines = open(f"{self.path}l", "w+", encoding="ascii")  # noqa: SIM115 (open as long as the run)

    def add(self, entries: Iterable[dict]) -> None:
        lines = [json.dumps(entry) + "\n" for entry in entries]
        self._lines.write("".join(lines))
        self._lines.flush()
        self.count += len(lines)

    def finish(self) -> None:
        """Write the list and remove the lines; only one entry is in memory at a time."""
        self._lines.seek(0)
        with atomic_write(self.path) as path, open(path, "w", encoding="ascii") as file:
            file.write("[")
            for number, line in enumerate(self._lines):
                file.write(",\n" * bool(number) + line.rstrip("\n"))
            file.write("]\n")
        self._lines.close()
        os.remove(f"{self.path}l")


@functools.cache  # warns once
def temporary_home() -> Path:
    """A replacement for a missing home folder (``docker run --user``)."""
    user = os.getuid() if hasattr(os, "getuid") else ""
    folder = Path(tempfile.gettempdir(), f"instseg_d2_{user}")
    logger.warning("The home folder is not writable: cached files go to %s, or where INSTSEG_CACHE points.", folder)
    return folder


def _is_writable(folder: str) -> bool:
    """True if the absolute path ``folder`` is a writable folder or can be created."""
    while not os.path.exists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    return os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)


def cache_folder(*parts: str) -> Path:
    """
    The path ``parts`` below ``$INSTSEG_CACHE``, else below ``~/.cache/instseg_d2``, or below :func:`temporary_home` if
    the home folder is not writable. Creates nothing.
    """
    root = os.environ.get("INSTSEG_CACHE")
    if root:
        return Path(os.path.expanduser(root), *parts)
    folder = os.path.expanduser(os.path.join("~", ".cache", "instseg_d2"))
    return Path(folder if _is_writable(folder) else temporary_home().joinpath(".cache", "instseg_d2"), *parts)


def write_json(path, content) -> None:
    """
    Write ``content`` as JSON to ``path``, whole or not at all.

    Raises:
        DatasetError: the folder is not writable or full.
    """
    try:
        write_bytes(path, json.dumps(content).encode())  # several times faster than json.dump
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be written ({error.strerror or error}); set INSTSEG_CACHE to a writable folder with free "
            "space."
        ) from error
