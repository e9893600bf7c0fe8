"""Whether the files of a data set are there, before anything is built for it."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence

from detectron2.data import DatasetCatalog

from ..errors import DatasetError
from .coco import require_registered

__all__ = ["check_images", "loading"]


def _builtin_hint(file) -> str:
    root = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    if not str(file).startswith(os.path.join(root, "")):
        return ""
    return "; Detectron2 looks for its builtin data sets in the folder DETECTRON2_DATASETS (default: ./datasets)"


@contextlib.contextmanager
def loading(names: Sequence[str]) -> Iterator[None]:
    """Errors of code that loads the data sets ``names`` become DatasetErrors of one sentence."""
    title = ", ".join(names)
    try:
        yield
    except AssertionError as error:  # Detectron2's words for a set without images, or none with objects
        raise DatasetError(f"{title}: {error}") from error
    except ModuleNotFoundError as error:
        raise DatasetError(f"loading {title} needs the package {error.name}: pip install {error.name}.") from error
    except (OSError, json.JSONDecodeError) as error:
        file = getattr(error, "filename", None)
        reason = f"{file}: {error.strerror}" if file else error
        raise DatasetError(f"{title} cannot be loaded: {reason}{_builtin_hint(file)}.") from error


def _missing(files: list[str]) -> list[str]:
    """Those that do not exist; each folder is listed once, which is faster than asking for each file."""
    listed, missing = {}, []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in listed:
            listed[folder] = set()
            with contextlib.suppress(OSError):
                listed[folder] = set(os.listdir(folder or "."))
        if name not in listed[folder] and not os.path.isfile(file):  # a system may ignore the case, or not list
            missing.append(file)
    return missing


def check_images(name: str, *, training: bool, filter_empty: bool = False) -> list[str]:
    """
    Load a data set and look for its image files.

    Args:
        training: up to max(1, 1 %) may be missing, as many as the training loader skips; else none may.
        filter_empty: images without objects are not read.

    Returns:
        the names of the image files.

    Raises:
        DatasetError: the set cannot be loaded, has no images, or too many of them are missing.
    """
    require_registered(name)
    with loading([name]):
        records = DatasetCatalog.get(name)
    if not isinstance(records, list):  # a stream of its own
        return []
    if not records:
        raise DatasetError(f"the data set {name} has no images.")
    if filter_empty and "annotations" in records[0]:
        records = [x for x in records if any(not y.get("iscrowd", 0) for y in x["annotations"])]
    files = [str(x["file_name"]) for x in records if "://" not in str(x.get("file_name", "://"))]
    missing = _missing(files)
    tolerated = max(1, len(files) // 100) if training else 0
    if len(missing) > tolerated or (missing and len(missing) == len(files)):
        folder, first = os.path.split(missing[0])
        raise DatasetError(
            f"{len(missing)} of {len(files)} images of {name} are missing in {folder}, the first is "
            f"{first}{_builtin_hint(missing[0])}."
        )
    return files
