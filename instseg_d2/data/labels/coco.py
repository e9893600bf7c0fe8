"""COCO instances files."""

import os
from pathlib import Path

from ...files import write_json
from ..coco_file import load_coco
from ..faults import Findings
from ..images import image_size
from .common import Reading
from .writer import Writer

__all__ = ["CocoWriter", "file_names", "is_coco", "read"]


def is_coco(content) -> bool:
    """True for the content of a COCO instances file."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def file_names(content) -> list:
    """The images that a file lists."""
    images = content["images"] if is_coco(content) else ()
    return [image.get("file_name") for image in images if isinstance(image, dict)]


def read(reading: Reading, found: Findings) -> dict:
    """
    The content of a file, unchecked; images whose file is missing are kept.

    Raises:
        DatasetError: it is not a COCO file.
    """
    return load_coco(str(reading.source), str(reading.images_folder), found)


def leave_out_other_sizes(content: dict, reading: Reading, found: Findings) -> None:
    """Leave out checked images whose file has another size than listed, perhaps by its EXIF rotation."""
    wrong = set()
    for image in content["images"]:
        path = reading.images_folder / image["file_name"]
        if not os.path.isfile(path):
            reading.notes["images whose file is missing: their labels are kept"] += 1
            continue
        size, listed = image_size(path), (image["width"], image["height"])
        if size != listed:
            name = f"{image['file_name']}: {size[0]} x {size[1]}, not {listed}"
            found.add("images: file of another size than listed", name)
            wrong.add(image["id"])
    content["images"] = [image for image in content["images"] if image["id"] not in wrong]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] not in wrong]


class CocoWriter(Writer):
    """Writes one file, ``name``; see `Writer`. The labels stay in memory until `finish`."""

    per_image = False
    name = "annotations.json"

    def __init__(self, *args):
        super().__init__(*args)
        self._images: list[dict] = []
        self._annotations: list[dict] = []

    def add(self, image: dict, annotations: list[dict]) -> None:
        self._images.append(image)
        self._annotations += annotations

    def finish(self) -> None:
        content = {"images": self._images, "annotations": self._annotations, "categories": self.categories}
        write_json(Path(self.folder) / self.name, content)
