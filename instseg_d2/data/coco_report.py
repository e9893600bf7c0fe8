"""Everything that is wrong with a COCO instances file and its images, and a copy without it."""

import copy
import hashlib
import json
import os
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..errors import DatasetError, ImageError
from .coco_check import (
    NEEDED_KEYS,
    box_of_mask,
    category_name,
    clipped_box,
    load_coco,
    mask_area,
    number_annotations,
    repair_annotation,
    sizes_known,
)
from .images import further_frames, image_size, read_image
from .value_range import survey

__all__ = ["NOTE", "Finding", "Report", "class_differences", "examine", "shared_pictures"]

AREA_TOLERANCE = 0.2  # relative difference from which an area disagrees with its mask
BOX_TOLERANCE = 0.1  # of the box's longer side, and at least 2 pixels
DROPPED, REPAIRED, LOOK, NOTE = "dropped", "repaired", "look", "note"


class Finding(NamedTuple):
    """
    One row of a report. What the cleaned copy does about it: "dropped", "repaired"; "look" where somebody has to
    decide, "note" where nothing is wrong.
    """

    what: str
    count: int
    first: str
    remedy: str


class Report(NamedTuple):
    """The findings of a file, the content without the faults, class names by id, and picture hash -> file name."""

    findings: list
    content: dict
    summary: str
    categories: dict
    pictures: dict


class _Findings:
    """Counts faults in the order in which they first appear."""

    def __init__(self):
        self._rows: dict[tuple, list] = {}

    def add(self, what: str, remedy: str, name: str) -> None:
        row = self._rows.setdefault((what, remedy), [0, name])
        row[0] += 1

    def rows(self) -> list[Finding]:
        return [Finding(what, count, first, remedy) for (what, remedy), (count, first) in self._rows.items()]


def _named(entry: dict, key: str, name: str, found: _Findings) -> bool:
    """True if an image has the name of a file, or a category a name; a number becomes text, in place."""
    if key == "images":
        if not isinstance(entry["file_name"], str):
            found.add("images: file_name that is no text", DROPPED, f"{name}: {entry['file_name']!r}")
            return False
        return True
    text = category_name(entry["name"])
    if text is None:
        found.add("categories: name that is no text", DROPPED, f"{name}: {entry['name']!r}")
    elif text != entry["name"]:
        found.add("categories: name that is a number", REPAIRED, f"{name}: {text}")
        entry["name"] = text
    return text is not None


def _entries(content: dict, key: str, found: _Findings) -> list:
    """The entries of a list that have all needed keys and, for images and categories, an id of their own and a name."""
    kept, seen = [], set()
    kinds = {"categories": int, "images": (int, str)}.get(key)
    for number, entry in enumerate(content[key]):
        name = f"entry {number} of {key}"
        absent = [k for k in NEEDED_KEYS[key] if not isinstance(entry, dict) or k not in entry]
        if absent:
            found.add(f"{key}: no {absent[0]}", DROPPED, name)
            continue
        if kinds is not None:
            if not _named(entry, key, name, found):
                continue
            if not isinstance(entry["id"], kinds):
                found.add(f"{key}: id that is no integer", DROPPED, f"{name}: {entry['id']!r}")
                continue
            if entry["id"] in seen:
                found.add(f"{key}: id that another one has", DROPPED, f"{name}: id {entry['id']}")
                continue
            seen.add(entry["id"])
        kept.append(entry)
    return kept


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha1(file.read()).hexdigest()


def _check_images(images: list, image_root: str, found: _Findings, progress: bool) -> tuple[list, dict, dict]:
    """The usable images; {id of a second entry of a file: id of the first}; {hash: file name}."""
    kept, same, by_name, pictures = [], {}, {}, {}
    for image in tqdm(images, desc="images", unit="", disable=not progress, leave=False):
        name = image["file_name"]
        path = os.path.join(image_root, name)
        if name in by_name:
            found.add("images: file listed twice", REPAIRED, name)
            same[image["id"]] = by_name[name]
            continue
        if not os.path.isfile(path):
            found.add("images: missing file", DROPPED, name)
            continue
        size = (image.get("width"), image.get("height"))
        known = sizes_known(image)
        try:
            height, width = read_image(path, size=size if known else None).shape[:2]
        except ImageError as error:
            found.add("images: corrupt file", DROPPED, str(error))
            continue
        if not known:
            found.add("images: no width and height", REPAIRED, name)
            image["width"], image["height"] = image_size(path)
        elif (width, height) != size:
            found.add("images: file of another size than listed", DROPPED, f"{name}: {width} x {height}, not {size}")
            continue
        digest = _digest(path)
        if digest in pictures:
            found.add("images: same picture under two names", NOTE, f"{name} and {pictures[digest]}")
        if further_frames(path):
            found.add("images: further pages or frames, which are not read", NOTE, name)
        pictures.setdefault(digest, name)
        by_name[name] = image["id"]
        kept.append(image)
    return kept, same, pictures


def _check_values(files: list, found: _Findings) -> None:
    """What a sample of the images says of values of more than eight bits."""
    values = survey(files)
    for _ in range(values.deep):
        low, high = values.value_range
        found.add("images: more than 8 bits", NOTE, f"values {low:g} to {high:g} become 0 to 255")
    for file, image in values.misfits:
        name = f"{os.path.basename(file)}: {image.low:g} to {image.high:g}"
        found.add("images: values far from the range of the others", LOOK, name)


def _differ(box: list, wanted: list) -> bool:
    """True if two boxes [x, y, width, height] differ by more than the tolerance of the second."""
    (x, y, w, h), (left, top, width, height) = box, wanted
    far = max(abs(x - left), abs(y - top), abs(x + w - left - width), abs(y + h - top - height))
    return far > max(2.0, BOX_TOLERANCE * max(width, height))


def _compare_with_image(annotation: dict, width: int, height: int, name: str, found: _Findings) -> None:
    """A box without a mask against the image, and the area against the box, in place; masks have less area."""
    box, wanted = annotation["bbox"], clipped_box(annotation["bbox"], width, height)
    if _differ(box, wanted):
        found.add("annotations: box partly outside the image", REPAIRED, f"{name}: {box}")
        annotation["bbox"] = wanted
    area = wanted[2] * wanted[3]
    if annotation["area"] - area > max(4.0, AREA_TOLERANCE * area):
        found.add("annotations: area larger than the box", REPAIRED, f"{name}: {annotation['area']:g}")
        annotation["area"] = area


def _compare_with_mask(annotation: dict, area: float, size: tuple, name: str, found: _Findings) -> None:
    """Area and box against the mask, in place. area: of the mask; size: (width, height) of the image."""
    segmentation, (width, height) = annotation["segmentation"], size
    if abs(area - annotation["area"]) > max(4.0, AREA_TOLERANCE * area):
        found.add("annotations: area that the mask does not have", REPAIRED, f"{name}: {annotation['area']:g}")
        annotation["area"] = area
    box, wanted = annotation["bbox"], box_of_mask(segmentation, width, height)
    if _differ(box, wanted):
        found.add("annotations: box that the mask does not have", REPAIRED, f"{name}: {box}")
        annotation["bbox"] = wanted
    if isinstance(segmentation, list):
        points = np.concatenate([np.reshape(p, (-1, 2)) for p in segmentation])
        if (points < -1).any() or (points > (width + 1, height + 1)).any():
            found.add("annotations: polygon partly outside the image", NOTE, name)


def _check_annotations(content: dict, all_images: dict, same: dict, found: _Findings, progress: bool) -> list:
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    categories = {category["id"] for category in content["categories"]}
    with_masks = any(annotation.get("segmentation") for annotation in content["annotations"])
    kept, seen = [], set()
    for annotation in tqdm(content["annotations"], desc="annotations", unit="", disable=not progress, leave=False):
        name = f"annotation {annotation.get('id', 'without id')}"
        image, category = annotation["image_id"], annotation["category_id"]
        if not isinstance(category, int) or category not in categories:
            found.add("annotations: unknown category", DROPPED, f"{name}: {category!r}")
            continue
        if not isinstance(image, (int, str)) or image not in all_images:
            found.add("annotations: unknown image", DROPPED, f"{name}: {image!r}")
            continue
        image = annotation["image_id"] = same.get(image, image)
        if image not in sizes:
            found.add("annotations: of a dropped image", DROPPED, name)
            continue
        fault, repaired = repair_annotation(annotation, sizes[image], with_masks)
        area = None
        if not fault and annotation.get("segmentation"):
            area = mask_area(annotation["segmentation"], *sizes[image])
            fault = None if area else "polygon without area"
        if fault:
            found.add(f"annotations: {fault}", DROPPED, f"{name} of image {image}")
            continue
        if repaired:
            found.add("annotations: no usable area, box or crowd flag", REPAIRED, name)
        if area is None:
            _compare_with_image(annotation, *sizes[image], name, found)
        else:
            _compare_with_mask(annotation, area, sizes[image], name, found)
        content_key = json.dumps([image, category, annotation.get("segmentation") or annotation["bbox"]])
        if content_key in seen:  # as they are now: a clean copy has none of these
            found.add("annotations: object annotated twice", DROPPED, name)
            continue
        seen.add(content_key)
        kept.append(annotation)
    if not number_annotations(kept):
        found.add("annotations: ids missing, repeated or below 1", REPAIRED, "numbered anew from 1")
    return kept


def examine(json_file: str, image_root: str, progress: bool = False) -> Report:
    """
    Find every fault of a COCO instances file; each image is read in full.

    Args:
        progress: show a bar.

    Raises:
        DatasetError: see `load_coco`; nothing usable is left.
    """
    content = copy.copy(load_coco(json_file, image_root))
    found = _Findings()
    for key in NEEDED_KEYS:
        content[key] = _entries(content, key, found)
    all_images = {image["id"] for image in content["images"]}
    content["images"], same, pictures = _check_images(content["images"], image_root, found, progress)
    _check_values([os.path.join(image_root, image["file_name"]) for image in content["images"]], found)
    content["annotations"] = _check_annotations(content, all_images, same, found, progress)
    for key in NEEDED_KEYS:
        if not content[key]:
            faults = "; ".join(f"{row.count} x {row.what} (first: {row.first})" for row in found.rows())
            raise DatasetError(f"{json_file}: none of its {key} can be used: {faults or 'the list is empty'}.")
    categories = {category["id"]: category["name"] for category in content["categories"]}
    for name, count in Counter(categories.values()).items():
        if count > 1:
            found.add("categories: name that another one has", LOOK, name)
    objects = Counter(annotation["image_id"] for annotation in content["annotations"])
    used = Counter(annotation["category_id"] for annotation in content["annotations"])
    for image in content["images"]:
        if not objects[image["id"]]:
            found.add("images: no object", NOTE, image["file_name"])
    for identifier, name in categories.items():
        if not used[identifier]:
            found.add("categories: no object", NOTE, name)
    summary = (
        f"{len(content['images'])} images, {len(content['annotations'])} objects (at most "
        f"{max(objects.values())} in an image), {len(categories)} categories"
    )
    return Report(found.rows(), content, summary, categories, pictures)


def class_differences(reports: dict[str, Report]) -> list[Finding]:
    """What the categories of the files differ in: training takes classes by the order of their ids."""
    (first, base), *others = reports.items()
    findings = []
    for file, report in others:
        wrong = [
            f"id {i} is {base.categories.get(i, 'nothing')} in {first}, {report.categories.get(i, 'nothing')} in {file}"
            for i in sorted({*base.categories, *report.categories})
            if base.categories.get(i) != report.categories.get(i)
        ]
        if wrong:
            findings.append(Finding("categories: other than in the first file", len(wrong), wrong[0], LOOK))
    return findings


def shared_pictures(reports: dict[str, Report]) -> list[Finding]:
    """Pictures that are in more than one file, where results on one say nothing about the other."""
    files = defaultdict(list)
    for file, report in reports.items():
        for digest, name in report.pictures.items():
            files[digest].append(f"{name} of {file}")
    shared = [" and ".join(names) for names in files.values() if len(names) > 1]
    return [Finding("images: the same picture in two files", len(shared), shared[0], LOOK)] if shared else []
