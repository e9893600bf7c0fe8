"""
Training samples made of several images: copy-paste (Ghiasi et al., arXiv 2012.07177) and mosaic (Bochkovskiy et al.,
arXiv 2004.10934). M objects; H x W pixels after augmentation.
"""

import contextlib
import copy
import functools
import itertools
from collections.abc import Callable

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from ..errors import ImageError
from .augmentations import build_augmentations, build_resize, resized_shape
from .images import image_size
from .mapper import MIN_VISIBLE, InstanceDatasetMapper
from .segmentations import mask_box

__all__ = ["MixingMapper", "mixed_batches", "paste", "unmixed"]

GREY = 128  # where a mosaic has no image
CENTRE = (0.25, 0.75)  # range of the point where the images of a mosaic meet, as a share of its sides
MIN_SIDE = 8  # pixels; smaller images are not made into mosaics
_MAX_ATTEMPTS = 5  # to read a further image


def mixed_batches(cfg) -> int:
    """The number of batches before the closing phase, whose samples may be made of several images."""
    if cfg.INPUT.COPY_PASTE == 0 and cfg.INPUT.MOSAIC.PROB == 0:
        return 0
    closing = round(cfg.INPUT.CLOSING_PHASE * cfg.SOLVER.MAX_ITER)
    return (cfg.SOLVER.MAX_ITER - closing) * cfg.SOLVER.ACCUMULATE


def unmixed(cfg):
    """A copy of the config with which every training sample is made of one image."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.INPUT.COPY_PASTE = cfg.INPUT.MOSAIC.PROB = 0.0
    return cfg


class MixingMapper:
    """
    Maps data set dicts like :class:`InstanceDatasetMapper`, with gt_masks as BitMasks, which `mixed` needs.

    Reads INPUT.COPY_PASTE and INPUT.MOSAIC, and what InstanceDatasetMapper reads.
    """

    def __init__(self, cfg):
        self.copy_paste, self.mosaic = cfg.INPUT.COPY_PASTE, cfg.INPUT.MOSAIC.PROB
        self.resize = build_resize(cfg)
        self.whole = InstanceDatasetMapper(cfg, True, mask_format="bitmask")
        self.source = copy.copy(self.whole)
        self.source.semantic_target = False
        if self.mosaic:
            parts = build_augmentations(cfg, True, mosaic=True)
            self.part = InstanceDatasetMapper(
                cfg, True, mask_format="bitmask", augmentations=parts, crops=True, min_visible=MIN_VISIBLE
            )

    def __call__(self, record: dict) -> dict:
        """A sample of one image."""
        return self.whole(record)

    def mixed(self, record: dict, draw: Callable[[], dict]) -> dict:
        """
        A sample that may be a mosaic, and may have objects pasted on it. It keeps the file_name, image_id, height and
        width of ``record``.

        Args:
            draw: returns a random record. One whose image cannot be read is replaced by another without a word: it is
                reported when it is a ``record``.
        """
        if "annotations" not in record:
            return self.whole(record)
        in_mosaic = np.random.uniform() < self.mosaic
        sample = self._mosaic(record, draw) if in_mosaic else self.whole(record)
        if np.random.uniform() < self.copy_paste:
            other = self._another(self._some_objects, draw)
            if other is not None:
                paste(sample, other)
        return sample

    @staticmethod
    def _another(read: Callable, draw: Callable[[], dict]):
        """What ``read`` makes of a random record; None if nothing can be read."""
        for _ in range(_MAX_ATTEMPTS):
            with contextlib.suppress(ImageError):
                return read(draw())
        return None

    def _some_objects(self, record: dict):
        """The sample of a random subset of an image's objects, at least one, without crowds; None if it has none."""
        objects = [a for a in record.get("annotations", ()) if not a.get("iscrowd", 0)]
        if not objects:
            return None
        chosen = np.random.permutation(len(objects))[: np.random.randint(1, len(objects) + 1)]
        return self.source({**record, "annotations": [objects[i] for i in sorted(chosen)]})

    def _mosaic(self, record: dict, draw: Callable[[], dict]) -> dict:
        """Four images that meet at a random point; ``record`` is the upper left one and determines the size."""
        stored = (record["height"], record["width"]) if "height" in record else image_size(record["file_name"])[::-1]
        size = resized_shape(self.resize, *stored)
        if min(size) < MIN_SIDE:
            return self.whole(record)
        y, x = (round(side * np.random.uniform(*CENTRE)) for side in size)
        parts, corners = [], []
        for below, right in itertools.product((False, True), repeat=2):
            window = (size[0] - y if below else y, size[1] - x if right else x)
            read = functools.partial(self.part, window=window)
            part = read(record) if not parts else self._another(read, draw)
            if part is not None and "instances" in part:
                height, width = part["image"].shape[1:]
                parts.append(part)
                corners.append((y if below else y - height, x if right else x - width))
        return _joined(parts, corners, size)


def _joined(parts: list, corners: list, size: tuple) -> dict:
    """Samples as one of ``size`` (H, W), each with its upper left pixel (y, x) at its corner; the rest is grey."""
    sample, count = dict(parts[0]), sum(len(part["instances"]) for part in parts)
    sample["image"] = torch.full((3, *size), GREY, dtype=torch.uint8)
    if "basis_sem" in sample:
        sample["basis_sem"] = torch.zeros(size, dtype=torch.int64)
    masks, end = torch.zeros((count, *size), dtype=torch.bool), 0
    boxes = []
    for part, (y, x) in zip(parts, corners):
        instances = part["instances"]
        height, width = instances.image_size
        place, start, end = np.s_[..., y : y + height, x : x + width], end, end + len(instances)
        for name in ("image", "basis_sem"):
            if name in part:
                sample[name][place] = part[name]
        if instances.has("gt_masks"):
            masks[start:end][place] = instances.gt_masks.tensor
        boxes.append(instances.gt_boxes.tensor + torch.tensor([x, y, x, y]))
    instances = Instances(size, gt_boxes=Boxes(torch.cat(boxes)))
    instances.gt_classes = torch.cat([part["instances"].gt_classes for part in parts])
    if parts[0]["instances"].has("gt_masks"):
        instances.gt_masks = BitMasks(masks)
    sample["instances"] = instances
    return sample


def _overlap(length: int, other: int) -> tuple[slice, slice]:
    """Lay a line over another at random, so that the shorter lies in the longer: the common part in each of them."""
    start = int(np.random.randint(min(0, length - other), max(0, length - other) + 1))
    common = min(length, other)
    return slice(max(start, 0), max(start, 0) + common), slice(max(-start, 0), max(-start, 0) + common)


def paste(sample: dict, source: dict) -> None:
    """
    Paste all objects of ``source`` on ``sample``, in place, with BitMasks in both.

    The objects keep their distances from each other; of images of different sizes, the smaller one lies anywhere in the
    larger. An object loses the pixels that pasted ones cover, and its box becomes the tight box of the rest. Objects of
    which less than MIN_VISIBLE is left are dropped, as are pasted ones that are cut off so far by the image's edge.
    """
    under, over = sample["instances"], source["instances"]
    (rows, over_rows), (columns, over_columns) = map(_overlap, under.image_size, over.image_size)
    pasted, classes = [], []
    for mask, label in zip(over.gt_masks.tensor.numpy(), over.gt_classes.tolist()):
        inside = mask[over_rows, over_columns]
        if np.count_nonzero(inside) >= max(1, MIN_VISIBLE * np.count_nonzero(mask)):
            pasted.append(inside)
            classes.append(label)
    if not pasted:
        return
    cover = np.logical_or.reduce(pasted)
    pixels = source["image"].numpy()[:, over_rows, over_columns]
    np.copyto(sample["image"].numpy()[:, rows, columns], pixels, where=cover)
    if "basis_sem" in sample:
        labels = sample["basis_sem"].numpy()[rows, columns]
        for mask, label in zip(pasted, classes):
            labels[mask] = label + 1

    below, kept = under.gt_masks.tensor.numpy(), []
    boxes = under.gt_boxes.tensor.numpy()
    for i, mask in enumerate(below):
        window = mask[rows, columns]
        lost = np.count_nonzero(window & cover)
        if lost:
            left = np.count_nonzero(mask) - lost
            if left < max(1, MIN_VISIBLE * (left + lost)):
                continue
            window &= ~cover
            boxes[i] = mask_box(mask)
        kept.append(i)
    masks = np.zeros((len(kept) + len(pasted), *under.image_size), bool)
    masks[: len(kept)] = below[kept]
    masks[len(kept) :, rows, columns] = pasted
    pasted_boxes = np.array([mask_box(mask) for mask in masks[len(kept) :]], np.float32)
    sample["instances"] = Instances(
        under.image_size,
        gt_boxes=Boxes(torch.from_numpy(np.concatenate([boxes[kept], pasted_boxes]))),
        gt_classes=torch.cat([under.gt_classes[kept], torch.tensor(classes)]),
        gt_masks=BitMasks(torch.from_numpy(masks)),
    )
