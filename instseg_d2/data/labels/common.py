"""What the formats share: reading into COCO's lists, and writing one image after the other."""

import os
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

import pycocotools.mask as mask_util

from ...errors import DatasetError
from ...files import write_json
from ..coco_file import category_name, read_json
from ..images import image_size
from ..missing import images_below
from ..segmentations import to_rle

__all__ = ["CATEGORIES", "Reading", "Writer", "by_stem", "known_categories", "read_text"]

CATEGORIES = "categories.json"  # beside the labels: [{"id": , "name": }, ...], since only COCO files hold ids
LONGEST_NAME = 255  # bytes, of a file without its folder
BRIDGED = "objects with holes: cut open by bridges of no width"
JOINED = "objects of several parts: joined by bridges of no width"
BOXES = "boxes without a mask: written as rectangles"
CROWDS = "crowds: left out"
EMPTY = "objects that cover no pixel: left out"


def read_text(path: Path) -> str:
    """
    Raises:
        DatasetError: the file is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not a UTF-8 text file ({error.reason}).") from error


def by_stem(folder) -> dict[str, list[str]]:
    """{path without suffix: paths} of the images below a folder, relative to it, with / between the parts."""
    found: dict[str, list[str]] = {}
    for name in images_below(os.fspath(folder)):
        found.setdefault(os.path.splitext(name)[0], []).append(name)
    return found


def known_categories(folder: Path) -> list[dict]:
    """The content of ``categories.json``; [] if there is none."""
    path = folder / CATEGORIES
    if not path.is_file():
        return []
    entries = read_json(path)[0]
    fits = isinstance(entries, list) and all(isinstance(e, dict) and {"id", "name"} <= e.keys() for e in entries)
    if not fits or any(category_name(e["name"]) is None or not isinstance(e["id"], (int, str)) for e in entries):
        raise DatasetError(f'{path} is not a list of categories ([{{"id": 1, "name": "cat"}}, ...]).')
    return entries


class Reading:
    """
    COCO's lists, filled by a reader.

    Attributes:
        notes: {what was left out or changed: number}.
    """

    def __init__(self, source, images_folder):
        self.source, self.images_folder = Path(source), Path(images_folder)
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.notes: Counter = Counter()

    def image(self, file_name: str, size: Optional[tuple] = None) -> Optional[dict]:
        """
        Add an image; ``size`` is (width, height), needed only if the file is missing.

        Returns:
            The entry; None if the size is unknown, because the file is missing.

        Raises:
            ImageError: the file is not an image.
        """
        path = self.images_folder / file_name
        if os.path.isfile(path):  # unlike Path's, False for names that no file can have
            found = image_size(path)
            if size is not None and tuple(size) != found:
                self.notes[f"images of another size than their labels say: left out (first: {file_name})"] += 1
                return None
            size = found
        elif size is None:
            self.notes["images whose file is missing, and so their size: left out"] += 1
            return None
        else:
            self.notes["images whose file is missing: their labels are kept"] += 1
        entry = {"id": len(self.images) + 1, "file_name": file_name, "width": size[0], "height": size[1]}
        self.images.append(entry)
        return entry

    def object(self, image: dict, name: str, **mask_or_box) -> dict:
        """Add an object of a class; ``segmentation`` or ``bbox``, in pixels."""
        entry = {"id": len(self.annotations) + 1, "image_id": image["id"], "category_id": name, "iscrowd": 0}
        self.annotations.append({**entry, **mask_or_box})
        return self.annotations[-1]

    def reasons(self) -> str:
        """The notes as the end of a sentence."""
        return "".join(f"; {what}: {count}" for what, count in self.notes.items())

    def content(self, known: list[dict], names: Iterable[str] = ()) -> dict:
        """
        The COCO content: names become ids.

        Args:
            known: categories with their ids.
            names: further classes of the data set, in order; those that only objects name follow in alphabetic order.

        Raises:
            DatasetError: there is no image, or two classes have one name.
        """
        if not self.images:
            raise DatasetError(f"{self.source}: no image with labels{self.reasons()}.")
        for listed in (list(names), [category_name(entry["name"]) for entry in known]):
            twice = next((name for name in listed if listed.count(name) > 1), None)
            if twice is not None:
                raise DatasetError(f"{self.source}: two classes are called {twice!r}; rename one of them.")
        categories = [dict(entry) for entry in known]
        listed = {category_name(entry["name"]) for entry in categories}
        used = sorted({annotation["category_id"] for annotation in self.annotations})
        free = max([entry["id"] for entry in known if isinstance(entry["id"], int)], default=0) + 1
        for name in dict.fromkeys([*names, *used]):
            if name not in listed:
                categories.append({"id": free, "name": name})
                free += 1
        ids = {category_name(entry["name"]): entry["id"] for entry in categories}
        for annotation in self.annotations:
            annotation["category_id"] = ids[annotation["category_id"]]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}


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

    def __init__(self, folder, categories: list[dict], images_folder):
        self.folder, self.categories, self.images_folder = Path(folder), categories, Path(images_folder)
        self.names = {entry["id"]: entry["name"] for entry in categories}
        self.index = {entry["id"]: index for index, entry in enumerate(categories)}
        self.notes: Counter = Counter()

    def check_names(self, file_names: Iterable[str]) -> None:
        """
        Raises:
            DatasetError: a name leads out of the folder, or two images would share a label file.
        """
        taken: dict[str, str] = {}
        for name in file_names:
            path = Path(name)
            try:
                os.fsencode(name)
            except UnicodeEncodeError as error:
                raise DatasetError(f"{name!r}: no file can have this name.") from error
            if path.is_absolute() or ".." in path.parts or "\0" in name:
                raise DatasetError(f"{name!r}: the name of an image must lead to a file below the image folder.")
            if self.per_image and len(os.fsencode(self.path(path.name).name)) > LONGEST_NAME:
                raise DatasetError(f"{name}: too long a name for a label file {self.suffix}; shorten it.")
            stem = os.path.splitext(name)[0]
            if self.per_image and taken.setdefault(stem, name) != name:
                raise DatasetError(
                    f"{taken[stem]} and {name} would share the label file {path.stem}{self.suffix}: rename one of them."
                )

    def path(self, file_name: str, *below: str) -> Path:
        """The label file of an image."""
        return self.folder.joinpath(*below, os.path.splitext(file_name)[0] + self.suffix)

    def place(self, file_name: str, *below: str) -> None:
        """Link the image below the folder; copy it where links cannot be made."""
        source, target = self.images_folder / file_name, self.folder.joinpath(*below, file_name)
        if not os.path.isfile(source) or target.exists():
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            target.symlink_to(source.resolve())
        except OSError:
            shutil.copyfile(source, target)

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
