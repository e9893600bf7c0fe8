"""What the formats share when they are read into COCO's lists."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Optional

from ...errors import DatasetError
from ..coco_file import category_name, read_json
from ..images import image_size
from ..missing import images_below

__all__ = ["CATEGORIES", "Reading", "by_stem", "known_categories", "read_text"]

CATEGORIES = "categories.json"  # beside the labels: [{"id": , "name": }, ...], since only COCO files hold ids


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
    if isinstance(entries, dict) and "shapes" in entries:  # LabelMe's labels of categories.jpg
        return []
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
        self._first: dict[str, str] = {}

    def note(self, what: str, first: str, number: int = 1) -> None:
        """Count what was left out or changed; ``first``: where."""
        self.notes[what] += number
        self._first.setdefault(what, f" (first: {first})")

    def sentences(self) -> list[str]:
        """The notes as text."""
        return [f"{what}: {number}{self._first.get(what, '')}" for what, number in self.notes.items()]

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
                self.note("images of another size than their labels say: left out", file_name)
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
        return "".join(f"; {text}" for text in self.sentences())

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
