"""
LabelMe's JSON files, one for each image: polygons, rectangles and (from LabelMe 5.2 on) masks. Shapes with one group_id
are the parts of one object.
"""

import base64
import io
import json
import math
import os
from pathlib import Path
from typing import Optional

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from ...errors import DatasetError
from ...files import write_bytes
from ..coco_file import read_json
from ..coco_masks import LARGEST_SIDE
from ..segmentations import to_rle
from .common import CATEGORIES, Reading, known_categories
from .geometry import ellipse, pieces
from .writer import Writer

__all__ = ["LabelmeWriter", "is_labelme", "read"]

VERSION = "5.4.1"  # of LabelMe, whose notation this is


def is_labelme(content) -> bool:
    """True for the content of one of LabelMe's files."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _mask(shape: dict, image: dict) -> dict:
    """The RLE of a mask shape: a PNG of the pixels from its first point on."""
    crop = np.array(Image.open(io.BytesIO(base64.b64decode(shape["mask"]))).convert("L")) > 0
    x, y = (round(v) for v in shape["points"][0])
    canvas = np.zeros((image["height"] + crop.shape[0], image["width"] + crop.shape[1]), bool)
    canvas[max(y, 0) : y + crop.shape[0], max(x, 0) : x + crop.shape[1]] = crop[max(-y, 0) :, max(-x, 0) :]
    rle = to_rle(canvas[: image["height"], : image["width"]], image["height"], image["width"])
    return {**rle, "counts": rle["counts"].decode()}


def _outline(shape: dict, image: dict):
    """("bbox" or "segmentation", a polygon or RLE) of a shape; None if it has no area."""
    kind, points = shape.get("shape_type") or "polygon", shape["points"]
    if kind in ("polygon", "oriented_rectangle"):
        return "segmentation", [float(v) for x, y in points for v in (x, y)]
    if kind == "rectangle":
        x, y = zip(*points)  # two opposite corners, or all four
        return "bbox", [min(x), min(y), max(x) - min(x), max(y) - min(y)]
    if kind == "circle":
        (x, y), (u, v) = points
        radius = math.hypot(u - x, v - y)
        return "segmentation", ellipse(x, y, radius, radius)
    return ("segmentation", _mask(shape, image)) if kind == "mask" else None


def _add_objects(shapes: list, image: dict, reading: Reading) -> None:
    groups: dict[tuple, dict] = {}
    for number, shape in enumerate(shapes):
        found = _outline(shape, image)
        if found is None:
            reading.notes[f"shapes without area ({shape['shape_type']}): left out"] += 1
            continue
        group = shape.get("group_id")
        entry = groups.get((shape["label"], group, group is None and number))
        key, value = found
        if entry is None or key == "bbox" or "bbox" in entry:
            entry = reading.object(image, str(shape["label"]), **{key: value if key == "bbox" else [value]})
            entry["iscrowd"] = int((shape.get("flags") or {}).get("crowd") is True)
            groups[shape["label"], group, group is None and number] = entry
        else:
            entry["segmentation"].append(value)


def _image_name(path: Path, image_path: str, reading: Reading) -> str:
    """The image's name below the image folder: by its path from the JSON file, else by its last part."""
    image_path = image_path.replace("\\", "/")
    last = os.path.basename(image_path)
    if last in ("", ".", ".."):
        raise DatasetError(f"{path}: imagePath is {image_path!r}, which names no image file.")
    named = os.path.normpath(path.parent / image_path)
    beside = os.path.relpath(path.parent / last, reading.source)
    choices = [os.path.relpath(named, reading.images_folder).replace(os.sep, "/"), beside.replace(os.sep, "/"), last]
    choices = [choice for choice in choices if not choice.startswith("../")]
    return next((choice for choice in choices if os.path.isfile(reading.images_folder / choice)), choices[0])


def _read_file(path: Path, content: dict, reading: Reading) -> None:
    size: Optional[tuple] = (content.get("imageWidth"), content.get("imageHeight"))
    if not all(type(side) is int and 0 < side <= LARGEST_SIDE for side in size):
        size = None
    image = reading.image(_image_name(path, str(content["imagePath"]), reading), size)
    if image is None:
        return
    try:
        _add_objects(content["shapes"], image, reading)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, OSError, SyntaxError) as error:
        raise DatasetError(
            f"{path}: a shape is not what LabelMe writes (label, shape_type, points [[x, y], ...]): "
            f"{type(error).__name__} {error}."
        ) from error


def read(reading: Reading) -> dict:
    """
    The COCO content of a folder of files, or of one file; rectangles are boxes without a mask.

    Raises:
        DatasetError: a file is broken.
    """
    source = reading.source
    files = [source] if source.is_file() else sorted(source.rglob("*.json"))
    if source.is_file():
        reading.source = source.parent
    for file in files:
        content = read_json(file)[0]
        if is_labelme(content):
            _read_file(file, content, reading)
        elif file.name != CATEGORIES:
            reading.notes["JSON files that are not LabelMe's: left out"] += 1
    return reading.content(known_categories(reading.source))


def _mask_shape(mask, image: dict) -> dict:
    """The points and the PNG of a mask."""
    rle = to_rle(mask, image["height"], image["width"])
    x, y, w, h = mask_util.toBbox(rle).astype(int).tolist()
    crop, stream = mask_util.decode(rle)[y : y + h, x : x + w], io.BytesIO()
    Image.fromarray(crop * 255).convert("1").save(stream, "PNG")
    return {"points": [[x, y], [x + w - 1, y + h - 1]], "mask": base64.b64encode(stream.getvalue()).decode()}


class LabelmeWriter(Writer):
    """See `Writer`. Objects with holes become masks, parts without holes polygons of one group."""

    def _shapes(self, annotation: dict, image: dict, group: Optional[int]) -> list[dict]:
        if not annotation.get("segmentation"):
            x, y, w, h = annotation["bbox"]
            return [{"shape_type": "rectangle", "points": [[x, y], [x + w, y + h]]}]
        found = pieces(annotation, image)
        if any(holes for _, holes in found):
            return [{"shape_type": "mask", **_mask_shape(annotation["segmentation"], image)}]
        group = group if len(found) > 1 else None
        return [{"shape_type": "polygon", "points": ring.tolist(), "group_id": group} for ring, _ in found]

    def add(self, image: dict, annotations: list[dict]) -> None:
        shapes = []
        for number, annotation in enumerate(self.kept(image, annotations, crowds=True), start=1):
            common = {
                "label": self.names[annotation["category_id"]],
                "group_id": None,
                "description": f"{annotation['score']:.3f}" if "score" in annotation else "",
                "flags": {"crowd": True} if annotation.get("iscrowd") else {},
                "mask": None,
            }
            shapes += [{**common, **shape} for shape in self._shapes(annotation, image, number)]
        content = {
            "version": VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": os.path.basename(image["file_name"]),
            "imageData": None,
            "imageHeight": image["height"],
            "imageWidth": image["width"],
        }
        write_bytes(self.path(image["file_name"]), json.dumps(content, indent=1).encode())
        self.place(image["file_name"])
