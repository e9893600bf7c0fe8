"""Writes files completely or not at all, and finds the cache folder."""

import contextlib
import functools
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Optional

from .errors import DatasetError

__all__ = [
    "ListFile",
    "atomic_write",
    "cache_folder",
    "read_list",
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

    Args:
        path: path of the finished file.
        keep: continue the list of an earlier run, finished or not, with those of its entries for which this is True;
            None: begin a new one.

    Attributes:
        path; count: number of entries so far.

    Raises:
        OSError: the folder is not writable, or the disk is full.
        DatasetError: the earlier file is not such a list.
    """

    def __init__(self, path, keep: Optional[Callable[[dict], bool]] = None):
        self.path = os.fspath(path)
        self.count = 0
        if keep is not None:
            self._take_up(keep)
        # Open as long as the run.
        self._lines = open(f"{self.path}l", "w+" if keep is None else "a+", encoding="ascii")  # noqa: SIM115

    def _take_up(self, keep: Callable[[dict], bool]) -> None:
        earlier = next((path for path in (f"{self.path}l", self.path) if os.path.exists(path)), os.devnull)
        with atomic_write(f"{self.path}l") as path, open(path, "w", encoding="ascii") as file:
            for entry in read_list(earlier):
                if keep(entry):
                    file.write(json.dumps(entry) + "\n")
                    self.count += 1

    def __iter__(self) -> Iterator[dict]:
        """The entries so far; only one is in memory at a time."""
        with open(f"{self.path}l", encoding="ascii") as lines:
            yield from map(json.loads, lines)

    def add(self, entries: Iterable[dict]) -> None:
        lines = [json.dumps(entry) + "\n" for entry in entries]
        self._lines.write("".join(lines))
        self._lines.flush()
        self.count += len(lines)

    def finish(self) -> None:
        """Write the list and remove the lines."""
        self._lines.close()
        with atomic_write(self.path) as path, open(path, "w", encoding="ascii") as file:
            file.write("[")
            with open(f"{self.path}l", encoding="ascii") as lines:
                for number, line in enumerate(lines):
                    file.write(",\n" * bool(number) + line.rstrip("\n"))
            file.write("]\n")
        os.remove(f"{self.path}l")


def read_list(path: str) -> Iterator[dict]:
    """
    The entries of a list that `ListFile` wrote, finished or not. An unfinished one may end within an entry.

    Raises:
        DatasetError: another program wrote it.
    """
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            text = line.strip().removeprefix("[").rstrip(",]")
            if not text:
                continue
            try:
                entry = json.loads(text)
            except ValueError:
                entry = None
            if isinstance(entry, dict):
                yield entry
            elif line.endswith("\n"):  # else the run was killed while it wrote this line
                raise DatasetError(f"{path} is not a list of an earlier run: move it away, or choose another folder.")


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
