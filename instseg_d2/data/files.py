"""Errors of the data code, the cache folder and writing files whole or not at all."""

import contextlib
import json
import os
import tempfile
from pathlib import Path

__all__ = ["DatasetError", "ImageError", "cache_folder", "write_json", "written_whole"]


class DatasetError(ValueError):
    """A data set that cannot be used; the message is one sentence that names the file and the fault."""


class ImageError(DatasetError):
    """An image that is missing, broken or of another size than its annotation says."""


def cache_folder(*parts: str) -> Path:
    """The path of ``parts`` below ``$INSTSEG_CACHE`` or ``~/.cache/instseg_d2``; nothing is created."""
    root = os.environ.get("INSTSEG_CACHE")
    return Path(root).expanduser().joinpath(*parts) if root else Path.home().joinpath(".cache", "instseg_d2", *parts)


@contextlib.contextmanager
def written_whole(path):
    """
    A temporary path beside ``path`` to write to; it takes the place of ``path`` only when the block succeeds.

    Raises:
        DatasetError: the folder cannot be written or is full; it names ``path`` and INSTSEG_CACHE.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
        os.chmod(temporary, 0o644)
        yield Path(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise DatasetError(
            f"{path} cannot be written ({error.strerror or error}); point INSTSEG_CACHE at a folder with space."
        ) from error
    finally:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)


def write_json(path, content) -> None:
    """Write ``content`` as JSON to ``path``, whole or not at all."""
    with written_whole(path) as temporary, open(temporary, "w") as file:
        file.write(json.dumps(content))  # several times faster than json.dump
