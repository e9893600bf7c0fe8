"""Which files the page may use: models in the chosen folders, and pictures of the data sets."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence

from ...errors import ImageError
from ..results import shown_name

__all__ = ["find_models", "inside", "require_inside"]

CHECKPOINTS = (".pth", ".pt", ".pkl", ".safetensors")
EXPORTED = (".onnx", ".xml", ".pt2")
OTHERS = ("bad_batch.pth", "instances_predictions.pth")  # what training and evaluation write besides
MAX_MODELS, MAX_DEPTH = 200, 5


def inside(path: str, folders: Iterable[str]) -> bool:
    """True if a file is in one of the folders after all links and ``..`` are followed."""
    real = os.path.realpath(path)
    return any(os.path.commonpath([real, root]) == root for root in map(os.path.realpath, folders))


def require_inside(path: str, folders: Iterable[str]) -> None:
    """Raise ImageError unless the file is in one of the folders."""
    if not inside(path, folders):
        real = os.path.realpath(path)
        where = "is" if real == os.path.abspath(path) else f"leads to {real},"
        raise ImageError(
            f"{path} {where} outside the chosen folders: name its folder with --folder {os.path.dirname(real)} (and . "
            "for the current one, which --folder replaces)."
        )


def _is_model(path: str) -> bool:
    name = os.path.basename(path)
    stem, suffix = os.path.splitext(name)
    if name.startswith(".") or name in OTHERS or suffix not in CHECKPOINTS + EXPORTED or not os.path.isfile(path):
        return False
    return suffix != ".xml" or os.path.isfile(os.path.join(os.path.dirname(path), f"{stem}.bin"))


def find_models(folders: Sequence[str]) -> dict[str, str]:
    """
    {shown name: path} of checkpoints and exported files in the folders and below, the newest first. Names are relative
    to the folders; paths where two would be the same. Bytes that are not UTF-8 are shown as U+FFFD.

    Hidden folders and environments are left out, and links that lead out of the folders.
    """
    found: dict[str, tuple] = {}  # real path -> time, path and name
    for folder in folders:
        for here, subfolders, names in os.walk(folder):
            depth = os.path.relpath(here, folder).count(os.sep)
            environment = "pyvenv.cfg" in names
            subfolders[:] = sorted(n for n in subfolders if n[0] != "." and depth < MAX_DEPTH and not environment)
            for path in [] if environment else (os.path.normpath(os.path.join(here, name)) for name in names):
                if _is_model(path) and inside(path, folders):
                    with contextlib.suppress(OSError):  # removed meanwhile
                        entry = os.path.getmtime(path), path, shown_name(os.path.relpath(path, folder))
                        found.setdefault(os.path.realpath(path), entry)
    newest = sorted(found.values(), key=lambda entry: -entry[0])[:MAX_MODELS]
    counts = Counter(name for _, _, name in newest)
    shown: dict[str, str] = {}
    for _, path, name in newest:
        unique = base = name if counts[name] == 1 else shown_name(path)
        number = 1
        while unique in shown:  # of two paths that differ in bytes that cannot be shown
            number += 1
            unique = f"{base} ({number})"
        shown[unique] = path
    return shown
