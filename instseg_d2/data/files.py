"""Errors of the data code, the cache folder and its JSON files."""

import json
import os
from pathlib import Path

from ..files import write_bytes

__all__ = ["DatasetError", "ImageError", "cache_folder", "write_json"]


class DatasetError(ValueError):
    """A data set that cannot be used; the message is one sentence that names the file and the fault."""


class ImageError(DatasetError):
    """An image that is missing, broken or of another size than its annotation says."""


def cache_folder(*parts: str) -> Path:
    """The path of ``parts`` below ``$INSTSEG_CACHE`` or ``~/.cache/instseg_d2``; nothing is created."""
    root = os.environ.get("INSTSEG_CACHE")
    return Path(root).expanduser().joinpath(*parts) if root else Path.home().joinpath(".cache", "instseg_d2", *parts)


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
