"""
Checks of a COCO instances file before it is used.

Faults that make the file ambiguous are errors; single annotations that cannot be used are dropped with one warning;
what COCOeval needs and the file lacks (area, iscrowd, bbox, ids from 1) is filled in.
"""

import json
import logging
import math
import os
from collections import Counter
from typing import Optional

import numpy as np
import pycocotools.mask as mask_util

from .files import DatasetError, ImageError
from .images import image_size

__all__ = [
    "NEEDED_KEYS",
    "box_of_mask",
    "check_coco",
    "load_coco",
    "number_annotations",
    "read_coco",
    "repair_annotation",
    "rle_counts",
    "shoelace",
]

logger = logging.getLogger(__name__)

NEEDED_KEYS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id"),
}
_REPAIRED = ("area", "iscrowd", "bbox", "ignore", "segmentation")


def load_coco(json_file: str, image_root: str) -> dict:
    """
    The content of a JSON file that has the lists of a COCO instances file: images, annotations, categories.

    Raises:
        DatasetError: the file or the image folder is missing, it is no JSON or no COCO file.
    """
    if not os.path.isfile(json_file):
        raise DatasetError(f"{json_file}: there is no such annotation file.")
    if not os.path.isdir(image_root):
        raise DatasetError(f"{image_root}: there is no such image folder (for {json_file}).")
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{json_file} is no JSON file ({error}).") from error
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not (isinstance(content, dict) and isinstance(content.get(key), list))]
    if missing:
        raise DatasetError(
            f"{json_file} is no COCO file: it lacks the list{'s' * (len(missing) > 1)} "
            f"{', '.join(missing)} (needed: images, annotations, categories)."
        )
    return content


def read_coco(json_file: str, image_root: str) -> dict:
    """
    The content of a COCO instances file whose frame (images, annotations, categories) is sound.

    Raises:
        DatasetError: as of `load_coco`; an entry lacks a key, or ids repeat.
    """
    content = load_coco(json_file, image_root)
    for key, needed in NEEDED_KEYS.items():
        for number, entry in enumerate(content[key]):
            absent = [k for k in needed if not isinstance(entry, dict) or k not in entry]
            if absent:
                raise DatasetError(f"{json_file}: entry {number} of {key} has no {absent[0]}.")
    for key, kinds in (("categories", int), ("images", (int, str))):
        if not content[key]:
            raise DatasetError(f"{json_file} lists no {key}.")
        for entry in content[key]:
            if not isinstance(entry["id"], kinds):
                raise DatasetError(f"{json_file}: the id {entry['id']!r} among its {key} is no integer.")
        identifier, count = Counter(entry["id"] for entry in content[key]).most_common(1)[0]
        if count > 1:
            raise DatasetError(f"{json_file}: {count} {key} share the id {identifier}; ids must differ.")
    return content


def rle_counts(rle: dict) -> list:
    """
    Run lengths of an RLE, compressed (a string) or not (a list), background first.

    COCO's string holds one number in one or more characters: bits 0-4 of (character - 48) are data, bit 5 says that
    more follow, the last data bit is the sign; from the fourth run on it is the difference to the run before last.
    """
    counts = rle["counts"]
    if isinstance(counts, list):
        return [int(c) for c in counts]
    runs, value, shift = [], 0, 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        data = character - 48
        value |= (data & 31) << shift
        shift += 5
        if not data & 32:
            if data & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value, shift = 0, 0
    return runs


def shoelace(polygon) -> float:
    """Area of a polygon x1, y1, x2, y2, ... in square pixels."""
    x, y = np.asarray(polygon[0::2], dtype=float), np.asarray(polygon[1::2], dtype=float)
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def _polygon_fault(annotation, area_known, width, height):
    """What is wrong with the polygons of an annotation, or None. Leaves only real polygons; fills a missing area."""
    polygons = annotation["segmentation"]
    if not isinstance(polygons[0], list):  # one polygon without the list around it
        polygons = [polygons]
    polygons = [p for p in polygons if isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0]
    if not polygons:
        return "polygon with under 3 points"
    try:
        if not all(math.isfinite(sum(p)) for p in polygons):
            return "polygon with a coordinate that is no number"
    except TypeError:
        return "polygon with a coordinate that is no number"
    if all(max(p[0::2]) <= 0 or min(p[0::2]) >= width or max(p[1::2]) <= 0 or min(p[1::2]) >= height for p in polygons):
        return "polygon outside the image"
    annotation["segmentation"] = polygons
    if not area_known:
        if not any(shoelace(p) > 0 for p in polygons):
            return "polygon without area"
        rle = mask_util.merge(mask_util.frPyObjects(polygons, height, width))
        annotation["area"] = float(mask_util.area(rle)) or sum(map(shoelace, polygons))
    return None


def _mask_fault(annotation, width, height):
    """What is wrong with the mask of an annotation, or None. Fills a missing area."""
    segmentation = annotation["segmentation"]
    area = annotation.get("area")
    area_known = isinstance(area, (int, float)) and area > 0
    if isinstance(segmentation, list):
        return _polygon_fault(annotation, area_known, width, height)
    try:
        size, runs = list(segmentation["size"]), rle_counts(segmentation)
    except (TypeError, KeyError, ValueError, IndexError):
        return "mask that is neither polygon nor RLE"
    if size != [height, width]:
        return "RLE of another size than the image"
    if sum(runs) != height * width or min(runs) < 0:
        return "broken RLE"
    if not sum(runs[1::2]):
        return "RLE without a pixel"
    if not area_known:
        annotation["area"] = sum(runs[1::2])
    return None


def box_of_mask(segmentation, width, height) -> list:
    """[x, y, width, height] in pixels around polygons or an RLE."""
    if isinstance(segmentation, list):
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation])
        low, high = points.min(0).clip(0), np.minimum(points.max(0), (width, height))
        return [float(v) for v in (*low, *(high - low))]
    if isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, height, width)
    return [float(v) for v in mask_util.toBbox(segmentation)]


def _box_fault(annotation, width, height):
    """What is wrong with the box of an annotation whose mask is sound, or None. Fills a missing box or area."""
    box = annotation.get("bbox")
    if not box:
        if not annotation.get("segmentation"):
            return "annotation with neither box nor mask"
        box = annotation["bbox"] = box_of_mask(annotation["segmentation"], width, height)
    try:
        x, y, w, h = (float(v) for v in box)
    except (TypeError, ValueError):
        return "box that is not 4 numbers"
    if not (w > 0 and h > 0 and math.isfinite(x + y + w + h)):
        return "box without area"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "box outside the image"
    if not annotation.get("area"):
        annotation["area"] = w * h
    return None


def repair_annotation(annotation: dict, size: tuple, with_masks: bool) -> tuple[Optional[str], bool]:
    """
    Fill in area, iscrowd and bbox of an annotation and leave only real polygons in it, in place.

    Args:
        size: (width, height) of its image; with_masks: the file has masks, so that this one needs one.

    Returns:
        what makes the annotation unusable, or None; whether anything was changed.
    """
    before = [annotation.get(key) for key in _REPAIRED]
    fault = None
    if annotation.get("segmentation"):
        fault = _mask_fault(annotation, *size)
    elif with_masks:
        fault = "annotation without a mask"
    fault = fault or _box_fault(annotation, *size)
    if fault is None:
        annotation["iscrowd"] = int(bool(annotation.pop("ignore", 0) or annotation.get("iscrowd", 0)))
    return fault, before != [annotation.get(key) for key in _REPAIRED]


def number_annotations(annotations: list) -> bool:
    """
    Number the annotations from 1, in place, unless their ids are positive integers that differ.

    Returns:
        whether their ids were so already.
    """
    identifiers = [annotation.get("id") for annotation in annotations]
    sound = all(isinstance(i, int) and i > 0 for i in identifiers) and len(set(identifiers)) == len(identifiers)
    if not sound:
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
    return sound


def _fill_image_sizes(content, json_file, image_root) -> bool:
    """Width and height as positive integers; where they are missing, the image file is asked. True if any changed."""
    changed = False
    for image in content["images"]:
        sides = [image.get(key) for key in ("width", "height")]
        if all(isinstance(side, int) and side > 0 for side in sides):
            continue
        changed = True
        try:
            image["width"], image["height"] = image_size(os.path.join(image_root, image["file_name"]))
        except ImageError as error:
            raise DatasetError(
                f"{json_file} gives no width and height of image {image['id']!r}, and {error}"
            ) from error
    return changed


def check_coco(json_file: str, image_root: str):
    """
    Check a COCO instances file and repair what can be repaired.

    Dropped, with one warning for the file: annotations whose polygon has under three points, no area, or lies outside
    the image, whose RLE is broken, empty or of another size, or whose box has no area or lies outside.
    Filled in: width and height of images, area, iscrowd, bbox; annotation ids that are missing, repeated or below 1
    (COCOeval takes id 0 for "not matched") are numbered anew; "ignore" becomes iscrowd.

    Returns:
        (dict, bool): the content and whether it differs from the file.

    Raises:
        DatasetError: see ``read_coco``; an annotation names an unknown image or category; none can be used.
    """
    content = read_coco(json_file, image_root)
    changed = _fill_image_sizes(content, json_file, image_root)
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    with_masks = any(annotation.get("segmentation") for annotation in content["annotations"])

    kept, faults, first = [], Counter(), ""
    for annotation in content["annotations"]:
        name = f"annotation {annotation.get('id', 'without id')}"
        for key, known in (("category_id", categories), ("image_id", sizes)):
            value = annotation[key]
            if not isinstance(value, (int, str)) or value not in known:
                raise DatasetError(f"{json_file}: {name} has {key} {value!r}, which the file does not list.")
        fault, repaired = repair_annotation(annotation, sizes[annotation["image_id"]], with_masks)
        if fault:
            faults[fault] += 1
            first = first or f"{name} of image {annotation['image_id']}: {fault}"
            continue
        changed = changed or repaired
        kept.append(annotation)

    if faults:
        counts = ", ".join(f"{count} x {fault}" for fault, count in faults.most_common())
        logger.warning(
            f"{json_file}: {sum(faults.values())} of {len(content['annotations'])} annotations are dropped: "
            f"{counts} (first: {first})."
        )
        if not kept:
            raise DatasetError(f"{json_file}: none of its annotations can be used: {counts} (first: {first}).")
    sound = number_annotations(kept)
    content["annotations"] = kept
    return content, changed or bool(faults) or not sound
