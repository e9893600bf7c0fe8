"""Writes the results of a detection run as they come, and names its pictures."""

import json
import os
from collections.abc import Iterable

from detectron2.structures import Instances

from ..evaluation.coco import coco_results
from ..files import atomic_write
from ..inference.image_predictor import ImagePredictor

__all__ = ["ResultsFile", "named_results", "shown_name", "unique_stem"]

MAX_STEM = 200  # bytes; the full name may have at most 255


class ResultsFile:
    """
    ``results.json`` of a folder, a JSON list. Until it is finished, its entries are in ``results.jsonl``, one per line
    and on disk as soon as they are added, so a killed run loses nothing.

    Attributes:
        path: path of the finished file.
        count: number of entries so far.

    Raises:
        OSError: the folder is not writable, or the disk is full.
    """

    def __init__(self, folder: str):
        self.path = os.path.join(folder, "results.json")
        self.count = 0
        self._lines = open(f"{self.path}l", "w+", encoding="ascii")  # noqa: SIM115 (open as long as the run)

    def add(self, entries: Iterable[dict]) -> None:
        lines = [json.dumps(entry) + "\n" for entry in entries]
        self._lines.write("".join(lines))
        self._lines.flush()
        self.count += len(lines)

    def finish(self) -> None:
        """Write the list and remove ``results.jsonl``; only one entry is in memory at a time."""
        self._lines.seek(0)
        with atomic_write(self.path) as path, open(path, "w", encoding="ascii") as file:
            file.write("[")
            for number, line in enumerate(self._lines):
                file.write(",\n" * bool(number) + line.rstrip("\n"))
            file.write("]\n")
        self._lines.close()
        os.remove(f"{self.path}l")


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
