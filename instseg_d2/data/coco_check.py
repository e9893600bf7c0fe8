"""
Checks of a COCO instances file before it is used.

Faults that make the file ambiguous are errors; single annotations that cannot be used are dropped with one warning;
what COCOeval needs and the file lacks (area, iscrowd, bbox, ids from 1) is filled in.
"""

import codecs
import json
import logging
import math
import os
from collections import Counter
from typing import Optional

import numpy as np
import pycocotools.mask as mask_util

from ..errors import DatasetError, ImageError
from .images import image_size

__all__ = [
    "NEEDED_KEYS",
    "box_of_mask",
    "category_name",
    "check_coco",
    "clipped_box",
    "load_coco",
    "mask_area",
    "number_annotations",
    "read_coco",
    "repair_annotation",
    "rle_counts",
    "sizes_known",
]

logger = logging.getLogger(__name__)

NEEDED_KEYS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id"),
}
LARGEST_SIDE = 100_000  # pixels; what is larger is a mistake, and pycocotools' memory grows with it
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
        with open(json_file, encoding="utf-8-sig") as file:
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


def category_name(name) -> Optional[str]:
    """The name of a category as text, which a number becomes; None for anything else."""
    if isinstance(name, (int, float)) and not isinstance(name, bool):
        return str(name)
    return name if isinstance(name, str) else None


def read_coco(json_file: str, image_root: str) -> dict:
    """
    The content of a COCO instances file whose frame (images, annotations, categories) is sound.

    Raises:
        DatasetError: as of `load_coco`; an entry lacks a key, a file name or category name is no text, or ids repeat.
    """
    content = load_coco(json_file, image_root)
    for key, needed in NEEDED_KEYS.items():
        for number, entry in enumerate(content[key]):
            absent = [k for k in needed if not isinstance(entry, dict) or k not in entry]
            if absent:
                raise DatasetError(f"{json_file}: entry {number} of {key} has no {absent[0]}.")
    for image in content["images"]:
        if not isinstance(image["file_name"], str):
            raise DatasetError(f"{json_file}: the file_name {image['file_name']!r} among its images is no text.")
    for category in content["categories"]:
        if category_name(category["name"]) is None:
            raise DatasetError(f"{json_file}: the name {category['name']!r} among its categories is no text.")
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


def _shoelace(polygon, width, height) -> float:
    """Area in square pixels of a polygon x1, y1, x2, y2, ... whose points are moved into the image."""
    x, y = np.reshape(polygon, (-1, 2)).clip(0, (width, height)).T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2


def mask_area(segmentation, width, height) -> float:
    """Pixels of an RLE or of polygons within the image; what polygons enclose where that is less than a pixel."""
    if not isinstance(segmentation, list):
        rle = segmentation
        if isinstance(rle["counts"], list):
            rle = mask_util.frPyObjects(rle, height, width)
        return float(mask_util.area(rle))
    area = float(mask_util.area(mask_util.merge(mask_util.frPyObjects(segmentation, height, width))))
    return area or sum(_shoelace(polygon, width, height) for polygon in segmentation)


def _is_area(value) -> bool:
    return isinstance(value, (int, float)) and 0 < value < 1e18


def _polygon_fault(annotation, width, height):
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
    except (TypeError, OverflowError):
        return "polygon with a coordinate that is no number"
    if any(max(p) > LARGEST_SIDE or min(p) < -LARGEST_SIDE for p in polygons):
        return f"polygon with a coordinate beyond {LARGEST_SIDE}"
    if all(max(p[0::2]) <= 0 or min(p[0::2]) >= width or max(p[1::2]) <= 0 or min(p[1::2]) >= height for p in polygons):
        return "polygon outside the image"
    annotation["segmentation"] = polygons
    if not _is_area(annotation.get("area")):
        area = mask_area(polygons, width, height)
        if not area:
            return "polygon without area"
        annotation["area"] = area
    return None


def _mask_fault(annotation, width, height):
    """What is wrong with the mask of an annotation, or None. Fills a missing area."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return _polygon_fault(annotation, width, height)
    try:
        size, runs = list(segmentation["size"]), rle_counts(segmentation)
    except (TypeError, KeyError, ValueError, IndexError, OverflowError):
        return "mask that is neither polygon nor RLE"
    if size != [height, width]:
        return "RLE of another size than the image"
    if sum(runs) != height * width or min(runs) < 0:
        return "broken RLE"
    if not sum(runs[1::2]):
        return "RLE without a pixel"
    if not _is_area(annotation.get("area")):
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


def clipped_box(box, width, height) -> list:
    """The part of a box [x, y, width, height] that is in the image."""
    x, y, w, h = box
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    return [float(v) for v in (left, top, right - left, bottom - top)]


def _fault_of_box(box, width, height):
    """What is wrong with [x, y, width, height], or None."""
    if not box:
        return "annotation with neither box nor mask"
    try:
        x, y, w, h = (float(v) if isinstance(v, (int, float)) else None for v in box)
        finite = math.isfinite(x + y + w + h)
    except (TypeError, ValueError, OverflowError):
        return "box that is not 4 numbers"
    if not (w > 0 and h > 0 and finite):
        return "box without area"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "box outside the image"
    return None


def _box_fault(annotation, width, height):
    """
    What is wrong with the box of an annotation whose mask is sound, or None. The mask gives a box that is missing or
    faulty; the box gives a missing area.
    """
    fault = _fault_of_box(annotation.get("bbox"), width, height)
    if fault and annotation.get("segmentation"):
        annotation["bbox"] = box_of_mask(annotation["segmentation"], width, height)
        fault = _fault_of_box(annotation["bbox"], width, height) and "polygon without area"
    if fault is None and not _is_area(annotation.get("area")):
        *_, w, h = clipped_box(annotation["bbox"], width, height)
        annotation["area"] = w * h
    return fault


def repair_annotation(annotation: dict, size: tuple, with_masks: bool) -> tuple[Optional[str], bool]:
    """
    Fill in area, iscrowd and bbox of an annotation and leave only real polygons in it, in place.

    Args:
        size: (width, height) of its image; with_masks: the file has masks, so that this one needs one.

    Returns:
        what makes the annotation unusable, or None; whether anything was changed.
    """
    before = {key: annotation[key] for key in _REPAIRED if key in annotation}
    fault = None
    if annotation.get("segmentation"):
        fault = _mask_fault(annotation, *size)
    elif with_masks:
        fault = "annotation without a mask"
    fault = fault or _box_fault(annotation, *size)
    if fault is None:
        flags = annotation.pop("ignore", 0), annotation.get("iscrowd", 0)
        try:
            annotation["iscrowd"] = int(any(int(flag or 0) for flag in flags))
        except (TypeError, ValueError, OverflowError):
            fault = "crowd flag that is neither 0 nor 1"
    return fault, before != {key: annotation[key] for key in _REPAIRED if key in annotation}


def number_annotations(annotations: list) -> bool:
    """
    Number the annotations from 1, in place, unless their ids are positive integers that differ (and that COCOeval's
    real numbers can tell apart).

    Returns:
        whether their ids were so already.
    """
    identifiers = [annotation.get("id") for annotation in annotations]
    sound = all(isinstance(i, int) and 0 < i < 1 << 53 for i in identifiers) and len(set(identifiers)) == len(
        identifiers
    )
    if not sound:
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
    return sound


def sizes_known(image: dict) -> bool:
    """True if an image has a width and a height that can be."""
    sides = (image.get("width"), image.get("height"))
    return all(isinstance(side, int) and 0 < side <= LARGEST_SIDE for side in sides)


def _fill_image_sizes(content, json_file, image_root) -> bool:
    """Width and height as positive integers; where they are missing, the image file is asked. True if any changed."""
    changed = False
    for image in content["images"]:
        if sizes_known(image):
            continue
        changed = True
        try:
            image["width"], image["height"] = image_size(os.path.join(image_root, image["file_name"]))
        except ImageError as error:
            raise DatasetError(
                f"{json_file} gives no width and height of image {image['id']!r}, and {error}"
            ) from error
    return changed


def _read_anew(content, json_file) -> bool:
    """Category names as text. True if one was a number, or if the file starts with the mark of Windows' editors."""
    changed = False
    for category in content["categories"]:
        if not isinstance(category["name"], str):
            category["name"], changed = category_name(category["name"]), True
    with open(json_file, "rb") as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8 or changed


def check_coco(json_file: str, image_root: str):
    """
    Check a COCO instances file and repair what can be repaired.

    Dropped, with one warning for the file: annotations whose polygon has under three points, no area, or lies outside
    the image, whose RLE is broken, empty or of another size, or that have no mask and whose box has no area or lies
    outside. Filled in: width and height of images, area, iscrowd, bbox (a faulty one, too, from its mask); annotation
    ids that are missing, repeated or below 1 (COCOeval takes id 0 for "not matched") are numbered anew; "ignore"
    becomes iscrowd; category names that are numbers become text.

    Returns:
        (dict, bool): the content and whether it differs from the file.

    Raises:
        DatasetError: see ``read_coco``; an annotation names an unknown image or category; none can be used.
    """
    content = read_coco(json_file, image_root)
    changed = _read_anew(content, json_file)
    changed = _fill_image_sizes(content, json_file, image_root) or changed
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
