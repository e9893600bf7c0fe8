"""Files that are written whole or not at all."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

__all__ = ["remove_unfinished", "write_bytes", "written_whole"]


@contextlib.contextmanager
def written_whole(path) -> Iterator[Path]:
    """
    A temporary file beside ``path`` to write to; it takes the place of ``path`` when the block succeeds and vanishes
    when it fails, so that nobody ever meets half a file. The folder is made if missing.

    Raises:
        OSError: as the block raises it, with ``path`` as its filename where it has none (a full disk).
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
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
