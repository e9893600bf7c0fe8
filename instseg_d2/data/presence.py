"""Checks that the images of a data set exist, before the model is built."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from multiprocessing.pool import ThreadPool

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import DatasetError, ImageError
from .coco import require_registered
from .images import image_size, read_image
from .missing import near_misses, reasons

__all__ = ["check_images", "loading"]

logger = logging.getLogger(__name__)


def _builtin_hint(file) -> str:
    root = os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))
    if not str(file).startswith(os.path.join(root, "")):
        return ""
    return "; Detectron2 looks for its built-in data sets in the folder DETECTRON2_DATASETS (default: ./datasets)"


@contextlib.contextmanager
def loading(names: Sequence[str]) -> Iterator[None]:
    """Turn errors while the data sets ``names`` are loaded into DatasetErrors."""
    title = ", ".join(names)
    try:
        yield
    except AssertionError as error:  # Detectron2's error for a set without images or objects
        raise DatasetError(f"{title}: {error}") from error
    except ModuleNotFoundError as error:
        raise DatasetError(f"loading {title} needs the package {error.name}: pip install {error.name}.") from error
    except (OSError, json.JSONDecodeError) as error:
        file = getattr(error, "filename", None)
        reason = f"{file}: {error.strerror}" if file else error
        raise DatasetError(f"{title} cannot be loaded: {reason}{_builtin_hint(file)}.") from error


def _missing(files: list[str]) -> list[str]:
    """The files that do not exist. Each folder is listed once, which is faster than a check per file."""
    listed, missing = {}, []
    for file in files:
        folder, name = os.path.split(file)
        if folder not in listed:
            listed[folder] = set()
            with contextlib.suppress(OSError):
                listed[folder] = set(os.listdir(folder or "."))
        if name not in listed[folder] and not os.path.isfile(
            file
        ):  # the file system may ignore case, or listing may fail
            missing.append(file)
    return missing


def _header_fault(record: dict):
    """Why an image is unusable, judging by its header; None if it is usable."""
    file, size = str(record["file_name"]), (record.get("width"), record.get("height"))
    try:
        if image_size(file) == size or None in size:
            return None
        height, width = read_image(file, size=size).shape[:2]
    except ImageError as error:
        return str(error)
    return None if (width, height) == size else f"{file} has {width} x {height} pixels, not {size[0]} x {size[1]}"


def _check_headers(name: str, records: list[dict], leave_out: bool) -> None:
    with ThreadPool(8) as pool:
        faults = [fault for fault in pool.map(_header_fault, records) if fault]
    if not faults:
        return
    found = f"{len(faults)} of {len(records)} images of {name} are unusable, the first: {faults[0].rstrip('.')}"
    if len(faults) == len(records) or not leave_out:
        raise DatasetError(f"{found}.")
    logger.warning(f"{found}; the evaluation excludes them and their objects.")


def _relative(files: list[str], name: str) -> tuple[list[str], str]:
    """The files relative to the image folder of a data set, and that folder."""
    root = MetadataCatalog.get(name).get("image_root") or os.path.dirname(files[0])
    start = os.path.join(root, "")
    return [file[len(start) :] if file.startswith(start) else file for file in files], root


def _check_objects(name: str, records: list[dict]) -> None:
    """Raise DatasetError if there is no object to train on."""
    annotations = [x for record in records for x in record.get("annotations", ())]
    if "annotations" in records[0] and all(x.get("iscrowd", 0) for x in annotations):
        what = f"all {len(annotations)} are crowds (iscrowd 1)" if annotations else "there are no annotations"
        raise DatasetError(f"the training set {name} has no object to train on: {what}.")


def _check_ids(name: str, records: list[dict]) -> None:
    """Raise DatasetError if NumPy would change the ids, and the evaluation lose objects; `register_coco` mends it."""
    categories = MetadataCatalog.get(name).get("thing_dataset_id_to_contiguous_id", {})
    for what, ids in (("image", {x["image_id"] for x in records if "image_id" in x}), ("category", set(categories))):
        if set(np.unique(list(ids)).tolist()) != ids:
            raise DatasetError(
                f"the {what} ids of {name} are neither all 64-bit integers nor all texts, so its evaluation would lose "
                "objects: register it with instseg_d2.data.register_coco."
            )


def check_images(name: str, *, training: bool, filter_empty: bool = False, leave_out: bool = False) -> list[str]:
    """
    Load a data set, check that its image files exist and, for testing, read their headers (a fraction of a millisecond
    per image on a local disk).

    Args:
        training: allow max(1, 1 %) of the files to be missing, as many as the training loader skips; for testing, none.
        filter_empty: ignore images without objects.
        leave_out: only warn if the header of a test image is unreadable or its size is not the annotated one.

    Returns:
        The names of the image files.

    Raises:
        DatasetError: the set cannot be loaded, has no images, or too many of them are missing; or a training set has no
            object to train on.
    """
    require_registered(name)
    with loading([name]):
        records = DatasetCatalog.get(name)
    if not isinstance(records, list):  # a stream
        return []
    if not records:
        raise DatasetError(f"the data set {name} has no images.")
    if training:
        _check_objects(name, records)
    if filter_empty and "annotations" in records[0]:
        records = [x for x in records if any(not y.get("iscrowd", 0) for y in x["annotations"])]
    records = [x for x in records if "://" not in str(x.get("file_name", "://"))]
    missing = _missing([str(x["file_name"]) for x in records])
    tolerated = max(1, len(records) // 100) if training else 0
    if len(missing) > tolerated or (missing and len(missing) == len(records)):
        names, root = _relative(missing, name)
        raise DatasetError(
            f"{len(missing)} of {len(records)} images of {name} are missing in {root}, the first is {names[0]}"
            f"{reasons(near_misses(names, root))}{_builtin_hint(missing[0])}."
        )
    if not training:
        _check_ids(name, records)
        _check_headers(name, records, leave_out)
    return [str(x["file_name"]) for x in records]
