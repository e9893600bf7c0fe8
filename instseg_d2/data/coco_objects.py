"""
Checks the annotations of a COCO file: drops unusable ones, fills in missing values, and compares box, mask and area.

Boxes [x, y, width, height] and bounds [x0, y0, x1, y1] are in pixels.
"""

from typing import NamedTuple, Optional

import numpy as np
from tqdm import tqdm

from .coco_masks import areas_differ, bounds_of, mask_area, read_box, read_mask
from .faults import ERROR, KEPT, REPAIRED, WARNING, Findings
from .units import Geometry, convert, corners, diagnose, differ, fractions

__all__ = ["check_annotations"]


class _Object(NamedTuple):
    """An annotation with a known image and category; the faults tell why its mask or box is unusable."""

    annotation: dict
    name: str
    size: tuple  # (width, height) of the image, in pixels
    mask_fault: Optional[str]
    box_fault: Optional[str]
    box: list  # x, y, width, height; nan if there is none
    bounds: list  # x0, y0, x1, y1 around the mask; nan if there is none
    area: float  # as listed; nan if it is not a number


_NONE = [float("nan")] * 4


def _read_object(annotation: dict, name: str, size: tuple, with_masks: bool, found: Findings) -> _Object:
    """Read mask, box and area; a mask or box in another notation is converted, in place."""
    mask, repaired, mask_fault, bounds = annotation.get("segmentation"), None, None, _NONE
    if mask:
        mask, repaired, mask_fault = read_mask(mask, *size)
        if not mask_fault:
            annotation["segmentation"], bounds = mask, bounds_of(mask, *size)
    elif with_masks:
        mask_fault = "annotation without a mask"
    box, other_notation, box_fault = read_box(annotation.get("bbox"))
    if other_notation:
        annotation["bbox"], repaired = box, "mask or box in another notation"
    if repaired:
        found.add(f"annotations: {repaired}", name)
    area = annotation.get("area")
    area = float(area) if isinstance(area, (int, float)) and 0 < area < 1e18 else float("nan")
    return _Object(annotation, name, size, mask_fault, box_fault, box or _NONE, bounds, area)


def _known(annotation: dict, name: str, ids: dict, found: Findings) -> bool:
    """True if the annotation's image and category are listed; their ids are then written as in the lists, in place."""
    for key, what in (("category_id", "category"), ("image_id", "image")):
        value = annotation[key]
        identifier = ids[key].find(value)
        if identifier is None:
            found.add(f"annotations: unknown {what}", f"{name}: {value!r}")
            return False
        if identifier != value:
            found.add("annotations: id written differently than in its list", f"{name}: {value!r}")
        annotation[key] = identifier
    return True


def _crowd(annotation: dict) -> Optional[int]:
    """The crowd flag, 0 or 1, from "iscrowd" or "ignore"; None for any other value."""
    try:
        return int(any(int(annotation.get(key) or 0) for key in ("iscrowd", "ignore")))
    except (TypeError, ValueError, OverflowError):
        return None


def _geometry(objects: list) -> Geometry:
    return Geometry(
        boxes=np.array([x.box for x in objects], float).reshape(-1, 4),
        bounds=np.array([x.bounds for x in objects], float).reshape(-1, 4),
        sizes=np.array([x.size for x in objects], float).reshape(-1, 2),
        polygons=np.array(
            [isinstance(x.annotation.get("segmentation"), list) and x.bounds is not _NONE for x in objects], bool
        ),
        areas=np.array([x.area for x in objects], float),
    )


def _complete(thing: _Object, box: Optional[list], off: bool, inside: list, clean: bool, found: Findings):
    """
    Fill in the area, box and crowd flag of an annotation, in place. A clean copy also gets a new area or box if the
    old one disagrees with the mask or the image.

    Args:
        box: None if unusable.
        off: the box differs from ``inside``, the expected box, clipped to the image.

    Returns:
        What makes the annotation unusable, or None.
    """
    annotation, name, mask, area = thing.annotation, thing.name, thing.annotation.get("segmentation"), thing.area
    true_area = mask_area(mask, *thing.size, area) if mask else inside[2] * inside[3]
    if not true_area or min(inside[2:]) <= 0:
        return "polygon without area"
    crowd = _crowd(annotation)
    if crowd is None:
        return "crowd flag that is neither 0 nor 1"
    flags_differ = annotation.get("iscrowd") != crowd or "ignore" in annotation
    annotation.pop("ignore", None)
    annotation["iscrowd"] = crowd
    if box is None:
        annotation["bbox"] = inside
    if area != area:
        annotation["area"] = true_area
    if box is None or area != area or flags_differ:
        found.add("annotations: no usable area, box or crowd flag", name)
    repairs = {}
    if areas_differ(annotation["area"], true_area) and (mask or area > true_area):
        found.add(
            f"annotations: {'area that disagrees with the mask' if mask else 'area larger than the box'}",
            f"{name}: {area:g}",
        )
        repairs["area"] = true_area
    if box is not None and off:
        found.add(
            f"annotations: {'box that disagrees with the mask' if mask else 'box partly outside the image'}",
            f"{name}: {annotation['bbox']}",
        )
        repairs["bbox"] = inside
    if clean:
        annotation.update(repairs)
    return None


def _usable(objects: list, geometry: Geometry, tiny: np.ndarray, clean: bool, found: Findings, progress: bool) -> list:
    """The usable annotations, with missing values filled in; a clean copy drops duplicates."""
    boxes = corners(geometry.boxes, geometry.sizes)
    masked = np.isfinite(geometry.bounds).all(1)
    extent = np.where(masked[:, None], geometry.bounds, boxes)
    ends = np.tile(geometry.sizes, 2)
    inside = np.clip(extent, 0, ends)
    outside, box_outside = (~((x[:, :2] < geometry.sizes) & (x[:, 2:] > 0)).all(1) for x in (extent, boxes))
    off = differ(boxes, inside)
    over = masked & geometry.polygons & ((extent < -1) | (extent > ends + 1)).any(1)
    inside[:, 2:] -= inside[:, :2]
    _, place, times = np.unique(inside, axis=0, return_inverse=True, return_counts=True)
    repeated = times[place.ravel()] > 1
    kept, seen = [], {}
    for i, thing in enumerate(tqdm(objects, desc="annotations", unit="", disable=not progress, leave=False)):
        annotation, name, box = thing.annotation, thing.name, inside[i].tolist()
        fault = thing.mask_fault or (None if masked[i] else thing.box_fault)
        if not fault and tiny[i]:
            fault = "object within the first pixel of the image"
        if not fault and outside[i]:
            fault = f"{'polygon' if masked[i] else 'box'} outside the image"
        if not fault:
            own = None if thing.box_fault or box_outside[i] else thing.box
            fault = _complete(thing, own, off[i], box, clean, found)
        if fault:
            found.add(f"annotations: {fault}", f"{name} of image {annotation['image_id']}")
            continue
        if over[i]:
            found.add("annotations: polygon partly outside the image", name)
        if repeated[i]:
            alike = seen.setdefault((annotation["image_id"], annotation["category_id"], *box), [])
            if annotation.get("segmentation") in alike:
                found.add("annotations: object annotated twice", name)
                if clean:
                    continue
            alike.append(annotation.get("segmentation"))
        kept.append(annotation)
    return kept


def _number(annotations: list, found: Findings) -> None:
    """
    Number the annotations from 1, in place, unless their ids are distinct positive integers. They must also be distinct
    as floats, which COCOeval uses; to COCOeval, id 0 means "not matched".
    """
    ids = [annotation.get("id") for annotation in annotations]
    if all(type(i) is int and 0 < i < 1 << 53 for i in ids) and len(set(ids)) == len(ids):
        return
    found.add("annotations: ids missing, repeated or below 1", "renumbered from 1")
    for number, annotation in enumerate(annotations, start=1):
        if annotation.get("id") is not None:
            annotation["original_id"] = annotation["id"]
        annotation["id"] = number


def check_annotations(
    content: dict,
    same: dict,
    all_ids: dict,
    clean: bool,
    assume,
    found: Findings,
    progress: bool,
    need_masks: bool = True,
):
    """The usable annotations, and the readings that would resolve their contradictions."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    with_masks = need_masks and any(annotation.get("segmentation") for annotation in content["annotations"])
    objects = []
    for annotation in content["annotations"]:
        name = f"annotation {annotation.get('id', 'without id')}"
        if not _known(annotation, name, all_ids, found):
            continue
        annotation["image_id"] = same.get(annotation["image_id"], annotation["image_id"])
        if annotation["image_id"] not in sizes:
            found.add("annotations: of a dropped image", name)
            continue
        objects.append(_read_object(annotation, name, sizes[annotation["image_id"]], with_masks, found))
    geometry = _geometry(objects)
    causes = diagnose(geometry)
    if assume:
        for index in convert([x.annotation for x in objects], geometry, causes, assume):
            objects[index] = _read_object(*objects[index][:3], with_masks, found)
        geometry = _geometry(objects)
    for cause in causes:
        useless = "normalised" in cause.reading and not (cause.part == "boxes" and with_masks)
        kind = (WARNING, REPAIRED) if set(cause.reading) <= set(assume) else (ERROR if useless else WARNING, KEPT)
        thing = objects[int(cause.objects.argmax())]
        where = thing.box if cause.part == "boxes" else thing.bounds if thing.bounds is not _NONE else thing.box
        found.add(cause.what, f"{thing.name}: {[round(v, 3) for v in where]}", int(cause.objects.sum()), kind)
    explained = not assume and any("normalised" in cause.reading for cause in causes)
    tiny = np.zeros(len(objects), bool) if explained else fractions(geometry)
    kept = _usable(objects, geometry, tiny, clean, found, progress)
    _number(kept, found)
    return kept, [] if assume else [name for cause in causes for name in cause.reading]
