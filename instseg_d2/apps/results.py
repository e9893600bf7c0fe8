"""Writes the results of a detection run as they come, and names its pictures."""

import os
from collections.abc import Sequence
from typing import Optional

from detectron2.structures import Instances

from ..data.labels import WRITERS, Writer
from ..errors import ConfigError
from ..evaluation.coco import coco_results
from ..files import ListFile
from ..inference.image_predictor import ImagePredictor
from .inputs import is_video

__all__ = ["ResultsFile", "label_writer", "named_results", "relative_names", "shown_name", "unique_stem"]

MAX_STEM = 200  # bytes; the full name may have at most 255


class ResultsFile(ListFile):
    """``results.json`` of a folder; ``results.jsonl`` until it is finished."""

    def __init__(self, folder: str):
        super().__init__(os.path.join(folder, "results.json"))


def shown_name(name: str) -> str:
    """A file's name as valid Unicode: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")


def named_results(instances: Instances, predictor: ImagePredictor, image_id: int, file_name: str) -> list[dict]:
    """COCO results of an image, with the data set's category ids, ``category_name`` and ``file_name``."""
    results = coco_results(instances, image_id)
    for result in results:
        index = result["category_id"]
        result["category_id"] = predictor.category_id(index)
        result["category_name"] = predictor.class_name(index)
        result["bbox"] = [round(value, 3) for value in result["bbox"]]
        result["score"] = round(result["score"], 6)
        result["file_name"] = file_name
    return results


def relative_names(files: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that files share, and their paths from there."""
    common = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    return common, [os.path.relpath(os.path.abspath(file), common) for file in files]


def label_writer(label_format: str, folder: str, predictor: ImagePredictor, files: Sequence[str]) -> Optional[Writer]:
    """
    The writer of a run's labels; None for "coco", since these are the results.

    Raises:
        ConfigError: the input is a video, or the class names are unknown.
        DatasetError: two images would share a label file.
    """
    if label_format == "coco":
        return None
    if is_video(files[0]):
        raise ConfigError(f"{files[0]} is a video; --format {label_format} works only on images")
    if predictor.class_names is None:
        raise ConfigError(f"--format {label_format} needs the names of the classes, which this model does not know")
    classes = range(len(predictor.class_names))
    categories = [{"id": predictor.category_id(i), "name": predictor.class_name(i)} for i in classes]
    common, names = relative_names(files)
    writer = WRITERS["voc" if label_format == "png" else label_format](folder, categories, common)
    writer.check_names(names)
    return writer


def unique_stem(file: str, taken: set[str], ends: tuple[str, ...] = ("",)) -> str:
    """
    A name for the outputs of a file: its own without suffix, shortened if too long, and numbered if taken.

    Args:
        taken: names in use, in lower case; the new ones are added.
        ends: endings that will be added to the stem.
    """
    base = shown_name(os.path.splitext(os.path.basename(file))[0])
    base = base.encode()[:MAX_STEM].decode("utf-8", "ignore")
    stem, number = base, 1
    while any((stem + end).lower() in taken for end in ends):
        number += 1
        stem = f"{base}_{number}"
    taken.update((stem + end).lower() for end in ends)
    return stem
