"""
Finds the faults of a COCO instances file (listed in ``faults.py``), for training and for ``check_data``, which also
reads the images and repairs a copy.
"""

from collections import Counter
from typing import NamedTuple

from ..errors import DatasetError
from .coco_file import Ids, id_order, load_coco, plain_ids, valid_entries
from .coco_images import open_images, size_images
from .coco_objects import check_annotations
from .faults import Findings, listed

__all__ = ["Report", "examine", "examine_content"]


class Report(NamedTuple):
    """
    The findings; the content without the faults; the readings of the coordinates that would explain the file, for
    ``check_data --assume``; the class names by ascending id; and hash of an image -> file name.
    """

    findings: list
    content: dict
    readings: list
    annotations: int  # number listed in the file
    summary: str
    classes: list
    pictures: dict


def _check_categories(content: dict, listed_annotations: int, found: Findings) -> None:
    """Find duplicate names, and categories and images without objects."""
    for name, count in Counter(category["name"] for category in content["categories"]).items():
        if count > 1:
            found.add("categories: duplicate name", name, count - 1)
    objects = Counter(x["category_id"] for x in content["annotations"] if not x["iscrowd"])
    crowds = Counter(x["category_id"] for x in content["annotations"] if x["iscrowd"])
    for category in content["categories"]:
        identifier, name = category["id"], category["name"]
        if crowds[identifier] and not objects[identifier]:
            what = "categories: only crowds (iscrowd 1), so neither trained on nor evaluated"
            found.add(what, f"{name}, {crowds[identifier]} crowds, as which CVAT exports brush masks")
        elif not objects[identifier]:
            found.add("categories: no object, so neither trained on nor evaluated", name)
    if not listed_annotations:
        found.add("annotations: none", "the list is empty")
    elif not objects:
        found.add(
            "annotations: none can be used",
            f"{sum(crowds.values())} crowds, {listed_annotations - sum(crowds.values())} dropped",
        )
    with_objects = {annotation["image_id"] for annotation in content["annotations"]}
    for image in content["images"]:
        if image["id"] not in with_objects:
            found.add("images: no object", image["file_name"])


def examine(json_file: str, image_root: str, *, clean: bool = True, assume=(), progress: bool = False) -> Report:
    """
    Find the faults of a COCO instances file, drop unusable entries and fill in what COCOeval needs.

    Args:
        clean: also read every image, and repair or drop the faults that training ignores.
        assume: names of `units.READINGS` to convert the coordinates from; "nothing": keep the coordinates.
        progress: show progress bars.

    Raises:
        DatasetError: see `load_coco`; or no image or category is usable.
    """
    found = Findings()
    content = load_coco(json_file, image_root, found)
    return examine_content(content, json_file, image_root, found, clean=clean, assume=assume, progress=progress)


def examine_content(
    content: dict,
    json_file: str,
    image_root: str,
    found: Findings,
    *,
    clean: bool = False,
    assume=(),
    progress: bool = False,
    need_masks: bool = True,
) -> Report:
    """
    The same for the content of a file; it is changed in place.

    Args:
        need_masks: if any object has a mask, drop those that have only a box.

    Raises:
        DatasetError: no image or category is usable.
    """
    for key in ("categories", "images", "annotations"):
        content[key] = valid_entries(content, key, found)
    all_ids = {"category_id": Ids(content["categories"]), "image_id": Ids(content["images"])}
    same, pictures = {}, {}
    if clean:
        content["images"], same, pictures = open_images(content["images"], image_root, found, progress)
    else:
        content["images"] = size_images(content["images"], image_root, found)
    number = len(content["annotations"])
    content["annotations"], readings = check_annotations(
        content, same, all_ids, clean, assume, found, progress, need_masks
    )
    for key in ("categories", "images"):
        if not content[key]:
            raise DatasetError(
                f"{json_file}: none of its {key} can be used: {listed(found.rows()) or 'there are none'}."
            )
        if not plain_ids(content[key]):
            found.add(f"{key}: ids that are not 64-bit integers", f"{content[key][0]['id']!r}")
    _check_categories(content, number, found)
    most = max(Counter(annotation["image_id"] for annotation in content["annotations"]).values(), default=0)
    summary = (
        f"{len(content['images'])} images, {len(content['annotations'])} objects (at most {most} in an image), "
        f"{len(content['categories'])} categories"
    )
    classes = [x["name"] for x in sorted(content["categories"], key=lambda x: id_order(x["id"]))]
    return Report(found.rows(), content, readings, number, summary, classes, pictures)
