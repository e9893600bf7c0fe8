"""
Pascal VOC's instance masks: SegmentationObject/NAME.png has the number of the object at each pixel, SegmentationClass
the class, and labelmap.txt (CVAT, Datumaro) or class_names.txt (LabelMe) the names of the classes.
"""

import io
from pathlib import Path
from typing import Optional

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from ...errors import DatasetError
from ...files import write_bytes
from ..segmentations import fill, to_rle
from ..voc import CLASSES, PALETTE, VOID, VOID_COLOR, object_annotations, read_voc_objects
from .common import Reading, by_stem, known_categories, read_text
from .geometry import pieces
from .writer import BOXES, Writer

__all__ = ["VocWriter", "find_folders", "read"]

FOLDERS = ("SegmentationObject", "SegmentationClass")
IMAGES = "JPEGImages"
COVERED = "objects partly under others: the masks lose those pixels"
HIDDEN = "objects wholly under others, or smaller than a pixel: left out"


def find_folders(root: Path):
    """The names of the two folders of maps, those of LabelMe's converter end in PNG; None if this is no VOC set."""
    for end in ("PNG", ""):
        names = tuple(f"{name}{end}" for name in FOLDERS)
        if all((root / name).is_dir() for name in names):
            return names
    return None


def _classes(root: Path) -> tuple[list, Optional[dict]]:
    """Class names by number - 1, and their colours {r << 16 | g << 8 | b: number}; None: VOC's."""
    path = root / "labelmap.txt"
    if path.is_file():
        rows = [line.rsplit(":", 3) for line in read_text(path).splitlines() if line.strip() and line[0] != "#"]
        if "background" not in [row[0] for row in rows]:
            raise DatasetError(f"{path} has no line for background.")
        try:
            colors = {VOID_COLOR: VOID}
            rows.sort(key=lambda row: row[0] != "background")
            for number, (_, color, *_) in enumerate(rows):
                r, g, b = map(int, color.split(","))
                colors[(r << 16) | (g << 8) | b] = number
        except ValueError as error:
            raise DatasetError(f"{path} is not a label map (lines name:r,g,b:parts:actions).") from error
        return [row[0] for row in rows[1:]], colors
    path = root / "class_names.txt"
    if path.is_file():
        names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
        return [name for name in names if name not in ("__ignore__", "_background_")], None
    return list(CLASSES), None


def read(reading: Reading) -> dict:
    """
    The COCO content of a data set; void pixels belong to no object.

    Raises:
        DatasetError: a file is missing or broken.
    """
    root = reading.source
    folders = find_folders(root)
    if folders is None:
        raise DatasetError(f"{root}: no folders {' and '.join(FOLDERS)} with the masks.")
    names, colors = _classes(root)
    images = by_stem(reading.images_folder)
    for path in sorted((root / folders[0]).rglob("*.png")):
        stem = path.relative_to(root / folders[0]).as_posix()[: -len(path.suffix)]
        try:
            objects, classes = read_voc_objects(root, stem, len(names), folders, colors)
        except (OSError, SyntaxError, ValueError) as error:
            if isinstance(error, DatasetError):
                raise
            raise DatasetError(f"{path}, or its class map, is not a PNG file ({error}).") from error
        found = images.get(stem, [f"{stem}.jpg"])
        if len(found) > 1:
            raise DatasetError(f"{path}: {' and '.join(found)} could both be its image; rename one with its masks.")
        height, width = objects.shape
        image = reading.image(found[0], (width, height))
        if image is not None:
            for annotation in object_annotations(objects, classes, image["id"]):
                reading.object(image, names[annotation["category_id"] - 1], segmentation=annotation["segmentation"])
    return reading.content(known_categories(root), names)


class VocWriter(Writer):
    """See `Writer`. Small objects are painted over large ones."""

    suffix = ".png"
    image_folder = IMAGES

    def __init__(self, folder, categories: list[dict], images_folder):
        super().__init__(folder, categories, images_folder)
        if len(categories) >= VOID:
            raise DatasetError(f"VOC masks hold at most {VOID - 1} classes, not {len(categories)}.")
        for name in self.names.values():
            if name.lstrip().startswith("#") or "".join(name.splitlines()) != name:
                raise DatasetError(
                    f"the class {name!r} cannot be in VOC's label map, where it would be a comment or several lines; "
                    "rename it."
                )

    def _rle(self, annotation: dict, image: dict) -> dict:
        mask = annotation.get("segmentation")
        if not mask:
            self.notes[BOXES] += 1
            mask = [outer.ravel().tolist() for outer, _ in pieces(annotation, image, inside=True)]
        return to_rle(mask, image["height"], image["width"])

    def _save(self, array: np.ndarray, file_name: str, folder: str) -> None:
        image, stream = Image.fromarray(array), io.BytesIO()
        if array.dtype == np.uint8:
            image.putpalette(PALETTE.astype(np.uint8).tobytes())
        image.save(stream, "PNG")
        write_bytes(self.path(file_name, folder), stream.getvalue())

    def add(self, image: dict, annotations: list[dict]) -> None:
        codes = [(self._rle(a, image), self.index[a["category_id"]] + 1) for a in self.kept(image, annotations)]
        codes.sort(key=lambda code: -int(mask_util.area(code[0])))
        numbers = [number for number in range(1, len(codes) + 2) if number != VOID][: len(codes)]
        if numbers and numbers[-1] >= 1 << 16:
            raise DatasetError(f"{image['file_name']}: a mask file holds at most 65534 objects, not {len(codes)}.")
        shape = image["height"], image["width"]
        objects = np.zeros(shape, np.uint16 if numbers and numbers[-1] > VOID else np.uint8)
        labels = np.zeros(shape, np.uint8)
        for number, (code, label) in zip(numbers, codes):
            fill(objects, code, number)
            fill(labels, code, label)
        left = np.bincount(objects.ravel(), minlength=len(codes) + 2)
        for number, (code, _) in zip(numbers, codes):
            if left[number] < max(int(mask_util.area(code)), 1):
                self.notes[COVERED if left[number] else HIDDEN] += 1
        self._save(objects, image["file_name"], FOLDERS[0])
        self._save(labels, image["file_name"], FOLDERS[1])
        self.place(image["file_name"])

    def finish(self) -> None:
        super().finish()
        lines = ["# label:color_rgb:parts:actions", "background:0,0,0::"]
        for entry, color in zip(self.categories, PALETTE[1:].tolist()):
            lines.append(f"{entry['name']}:{','.join(map(str, color))}::")
        write_bytes(self.folder / "labelmap.txt", ("\n".join(lines) + "\n").encode())
