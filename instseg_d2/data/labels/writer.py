"""What the formats share when they are written, one image after the other."""

import filecmp
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pycocotools.mask as mask_util

from ...errors import DatasetError
from ...files import atomic_write, write_json
from ..segmentations import to_rle
from .common import CATEGORIES

__all__ = ["BOXES", "BRIDGED", "CROWDS", "EMPTY", "JOINED", "Writer"]

LONGEST_NAME = 255  # bytes, of a file without its folder
BRIDGED = "objects with holes: cut open by bridges of no width"
JOINED = "objects of several parts: joined by bridges of no width"
BOXES = "boxes without a mask: written as rectangles"
CROWDS = "crowds: left out"
EMPTY = "objects that cover no pixel: left out"


class Writer:
    """
    Writes the labels of one image after the other; a subclass implements `write`, and ``finish`` if more is needed.

    Args:
        folder: written to; created if missing.
        categories: {"id": , "name": } each.
        images_folder: the file names of images are relative to it.

    Attributes:
        notes: {what the format cannot hold, and what was done: number}.
    """

    suffix = ".json"  # of an image's file
    per_image = True
    image_folder = ""  # folder of the linked images, below that of the labels

    def __init__(self, folder, categories: list[dict], images_folder):
        self.folder, self.categories, self.images_folder = Path(folder), categories, Path(images_folder)
        self.names = {entry["id"]: entry["name"] for entry in categories}
        self.index = {entry["id"]: index for index, entry in enumerate(categories)}
        self.notes: Counter = Counter()

    def check_names(self, file_names: Iterable[str]) -> None:
        """
        Raises:
            DatasetError: a name leads out of the folder, two images would share a label file, or a file of another
                use would be replaced.
        """
        taken: dict[Path, str] = {}
        for name in file_names:
            path = Path(name)
            try:
                os.fsencode(name)
            except UnicodeEncodeError as error:
                raise DatasetError(f"{name!r}: no file can have this name.") from error
            if not path.name or path.is_absolute() or ".." in path.parts or "\0" in name:
                raise DatasetError(f"{name!r}: the name of an image must lead to a file below the image folder.")
            if not self.per_image:
                continue
            label, source, target = self.path(name), self.images_folder / name, self._placed(name)
            if len(os.fsencode(label.name)) > LONGEST_NAME:
                raise DatasetError(f"{name}: too long a name for a label file {self.suffix}; shorten it.")
            if label in (self.folder / CATEGORIES, target):
                raise DatasetError(f"{name}: its label file would replace {label.name}; rename the image.")
            if taken.setdefault(label, name) != name:
                raise DatasetError(
                    f"{taken[label]} and {name} would share the label file {label.name}: rename one of them."
                )
            both = os.path.isfile(target) and os.path.isfile(source) and not target.is_symlink()
            if both and not filecmp.cmp(source, target, shallow=False):
                raise DatasetError(f"{target} is another picture than {source}; choose another folder to write to.")

    def path(self, file_name: str, *below: str) -> Path:
        """The label file of an image."""
        return self.folder.joinpath(*below, os.path.splitext(file_name)[0] + self.suffix)

    def _placed(self, file_name: str) -> Path:
        return self.folder / self.image_folder / file_name

    def place(self, file_name: str) -> None:
        """Link the image below the folder, instead of an earlier one; copy it where links cannot be made."""
        source, target = self.images_folder / file_name, self._placed(file_name)
        if not os.path.isfile(source) or (os.path.exists(target) and os.path.samefile(source, target)):
            return
        with atomic_write(target) as temporary:
            temporary.unlink()
            try:
                temporary.symlink_to(source.resolve())
            except OSError:
                shutil.copyfile(source, temporary)

    def kept(self, image: dict, annotations: list[dict], crowds: bool = False) -> list[dict]:
        """The annotations without empty masks, of which detections may have some, and, by default, without crowds."""
        found = []
        for annotation in annotations:
            mask = annotation.get("segmentation")
            if annotation.get("iscrowd") and not crowds:
                self.notes[CROWDS] += 1
            elif isinstance(mask, dict) and not mask_util.area(to_rle(mask, image["height"], image["width"])):
                self.notes[EMPTY] += 1
            else:
                found.append(annotation)
        return found

    def add(self, image: dict, annotations: list[dict]) -> None:
        """
        Write the labels of an image.

        Args:
            image: with file_name, width and height in pixels.
            annotations: with category_id, and segmentation or bbox; valid, as `coco_check.examine` leaves them.

        Raises:
            OSError: a file cannot be written.
            DatasetError: the format cannot hold the labels of this image.
        """
        raise NotImplementedError

    def finish(self) -> None:
        """Write what belongs to the whole set."""
        write_json(self.folder / CATEGORIES, self.categories)
