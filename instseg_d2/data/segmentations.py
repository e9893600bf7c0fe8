"""
Masks of annotations: rasterising, painting, and transforming them together with the image.

A segmentation, as in data set dicts, is polygons [[x0, y0, x1, y1, ...], ...], an RLE with compressed or plain counts,
or an array (H, W). H, W: height and width in pixels; M objects.
"""

import itertools
import math

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, PolygonMasks

from ..errors import DatasetError

__all__ = [
    "crop_annotation",
    "fill",
    "mask_box",
    "paint_semantic",
    "to_rle",
    "transform_bitmasks",
    "transform_polygons",
    "transform_semantic",
]


def _usable_polygons(segmentation: list) -> list:
    arrays = (np.asarray(p, dtype=np.float64).ravel() for p in segmentation)
    return [p for p in arrays if p.size >= 6 and p.size % 2 == 0]


def to_rle(segmentation, height: int, width: int) -> dict:
    """
    The compressed RLE of a segmentation; polygons are rasterised by COCO's rule.

    Raises:
        DatasetError: it is not a segmentation, or not of size H x W.
    """
    if isinstance(segmentation, list):
        polygons = _usable_polygons(segmentation) or [np.zeros(6)]
        return mask_util.merge(mask_util.frPyObjects(polygons, height, width))
    if isinstance(segmentation, np.ndarray):
        segmentation = mask_util.encode(np.asfortranarray(segmentation > 0, dtype=np.uint8))
    if not isinstance(segmentation, dict) or list(segmentation.get("size", [])) != [height, width]:
        raise DatasetError(f"a mask is neither polygons nor an RLE or array of {height} x {width} pixels")
    if isinstance(segmentation["counts"], list):
        return mask_util.frPyObjects(segmentation, height, width)
    return segmentation


def _decoded(rle: dict) -> tuple[tuple[slice, slice], np.ndarray]:
    """The bounding box of a mask as slices, and the pixels in it: bool."""
    x, y, w, h = mask_util.toBbox(rle).astype(int)
    window = np.s_[y : y + h, x : x + w]
    return window, mask_util.decode(rle)[window].view(bool)


def fill(canvas: np.ndarray, rle: dict, value) -> None:
    """Set the pixels of a mask in ``canvas`` (H, W), in place; works only on the mask's bounding box."""
    window, mask = _decoded(rle)
    np.copyto(canvas[window], value, where=mask)


def mask_box(mask: np.ndarray) -> list:
    """x0, y0, x1, y1 of a mask (H, W), bool, in pixels; zeros if it is empty."""
    ys, xs = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1] if len(xs) else [0, 0, 0, 0]


def _label_maps(segmentations: list, indices: list, size) -> list:
    """
    Some of the masks as labels 1, 2, ..., in as many maps (H, W), uint8, as their overlaps need: pairs of a map and
    the indices of its objects. A map takes as long to transform as a mask.
    """
    maps = []
    for i in indices:
        window, mask = _decoded(to_rle(segmentations[i], *size))
        free = (pair for pair in maps if len(pair[1]) < 255 and not pair[0][window][mask].any())
        canvas, objects = pair = next(free, (np.zeros(size, np.uint8), []))
        objects.append(i)
        np.copyto(canvas[window], len(objects), where=mask)
        if len(objects) == 1:
            maps.append(pair)
    return maps


def crop_annotation(annotation: dict, height: int, width: int, resolution: int) -> np.ndarray:
    """
    Crop the mask of an annotation to its box, clipped to the image, and resize it like Mask R-CNN's targets: (R, R)
    bool.

    Raises:
        DatasetError: the annotation has no mask, or its mask is not of size H x W.
    """
    segmentation = annotation.get("segmentation")
    if segmentation is None or not len(segmentation):
        raise DatasetError("an annotation has no mask, but the mask embedding needs one")
    box = BoxMode.convert(list(map(float, annotation["bbox"])), annotation["bbox_mode"], BoxMode.XYXY_ABS)
    boxes = Boxes(torch.tensor([box]))
    boxes.clip((height, width))
    box = boxes.tensor
    if isinstance(segmentation, list):
        return PolygonMasks([segmentation]).crop_and_resize(box, resolution)[0].numpy()
    # RoIAlign reads at most one pixel outside the box, so the rest of the image is not needed.
    left, top = (max(math.floor(x) - 2, 0) for x in box[0, :2].tolist())
    right, bottom = (math.ceil(x) + 2 for x in box[0, 2:].tolist())
    window = mask_util.decode(to_rle(segmentation, height, width))[top:bottom, left:right]
    masks = BitMasks(torch.from_numpy(window.astype(bool))[None])
    return masks.crop_and_resize(box - box.new_tensor([left, top, left, top]), resolution)[0].numpy()


def paint_semantic(segmentations: list, classes: list, height: int, width: int) -> np.ndarray:
    """
    Paint class + 1 of every object (classes from 0), later objects over earlier ones, 0 elsewhere: int32 (H, W).

    Used before the transforms; `modeling.ground_truth.semantic_map` follows the same rule after them.
    """
    canvas = np.zeros((height, width), np.int32)
    rles = (to_rle(segmentation, height, width) for segmentation in segmentations)
    for label, group in itertools.groupby(zip(classes, rles), key=lambda pair: pair[0]):
        fill(canvas, mask_util.merge([rle for _, rle in group]), label + 1)
    return canvas


def transform_semantic(canvas: np.ndarray, transforms) -> torch.Tensor:
    """Transform labels 0 to 65535 (H, W) by nearest neighbour: int64."""
    # Detectron2's transforms take bytes, so the low and the high byte are transformed separately.
    labels = transforms.apply_segmentation((canvas & 255).astype(np.uint8)).astype(np.int64)
    if canvas.size and canvas.max() > 255:
        labels += transforms.apply_segmentation((canvas >> 8).astype(np.uint8)).astype(np.int64) << 8
    return torch.from_numpy(np.ascontiguousarray(labels))


def transform_polygons(segmentations: list, transforms) -> list:
    """Transform the polygons of M objects, without clipping: a list of float64 arrays [x0, y0, ...] per object."""
    objects = [_usable_polygons(segmentation) for segmentation in segmentations]
    parts = [polygon for polygons in objects for polygon in polygons]
    if not parts:
        return objects
    points = transforms.apply_coords(np.concatenate(parts).reshape(-1, 2)).ravel()
    pieces = iter(np.split(points, np.cumsum([part.size for part in parts])[:-1]))
    return [[next(pieces) for _ in polygons] for polygons in objects]


def transform_bitmasks(segmentations: list, transforms, size, new_size) -> BitMasks:
    """
    The bitmasks of M objects after the transforms.

    Polygons are transformed as coordinates and rasterised once, at the new size; other masks are transformed as pixels,
    by nearest neighbour.

    Args:
        segmentations: M segmentations.
        transforms: Detectron2's TransformList.
        size, new_size: (H, W) before and after the transforms.
    """
    masks = np.zeros((len(segmentations), *new_size), dtype=bool)
    polygons = [i for i, segmentation in enumerate(segmentations) if isinstance(segmentation, list)]
    for i, parts in zip(polygons, transform_polygons([segmentations[i] for i in polygons], transforms)):
        fill(masks[i], to_rle(parts, *new_size), True)
    others = sorted(set(range(len(segmentations))).difference(polygons))
    for canvas, objects in _label_maps(segmentations, others, tuple(size)):
        labels = transforms.apply_segmentation(canvas)
        for label, i in enumerate(objects, 1):
            np.equal(labels, label, out=masks[i])
    return BitMasks(torch.from_numpy(masks))
