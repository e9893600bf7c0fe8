"""The augmentations of the recipes, as Detectron2 augmentations."""

import numpy as np
from detectron2.data import transforms as T

from ..config import ConfigError

__all__ = ["RandomCropAroundInstance", "build_augmentations"]


CROP_TYPES = ("relative_range", "relative", "absolute", "absolute_range")


class RandomCropAroundInstance(T.RandomCrop):
    """
    A window of random size that contains the centre of one random object, uniform among all such windows.

    An image without objects is cropped anywhere.

    Args:
        crop_type, crop_size: as in Detectron2's ``RandomCrop``.
    """

    def get_transform(self, image, boxes):
        """``image`` (H, W, C) and ``boxes`` (N, 4), x0 y0 x1 y1 in pixels, or None."""
        size = np.array(image.shape[:2])
        crop = np.minimum(np.maximum(self.get_crop_size(tuple(size)), 1), size)
        low, high = np.zeros(2, int), size - crop
        if boxes is not None and len(boxes):
            x0, y0, x1, y1 = boxes[np.random.randint(len(boxes))]
            centre = np.clip([(y0 + y1) / 2, (x0 + x1) / 2], 0, size)
            low = np.maximum(low, np.ceil(centre - crop).astype(int))
            high = np.minimum(high, np.floor(centre).astype(int))
        y, x = (int(np.random.randint(a, b + 1)) for a, b in zip(low, high))
        return T.CropTransform(x, y, int(crop[1]), int(crop[0]), int(size[1]), int(size[0]))


def _flip(cfg) -> list:
    kind = cfg.INPUT.RANDOM_FLIP
    if kind not in ("horizontal", "vertical", "none"):
        raise ConfigError(f"INPUT.RANDOM_FLIP is horizontal, vertical or none, not {kind!r}.")
    if kind == "none" or (kind == "horizontal" and not cfg.INPUT.HFLIP_TRAIN):
        return []
    return [T.RandomFlip(horizontal=kind == "horizontal", vertical=kind == "vertical")]


def build_augmentations(cfg, is_train: bool) -> list:
    """
    Crop, rotation, resizing of the shorter side and flip, in this order; for testing the resizing alone.

    Read from INPUT: CROP.{ENABLED, TYPE, SIZE, CROP_INSTANCE}, IS_ROTATE, MIN_SIZE_*, MAX_SIZE_*,
    MIN_SIZE_TRAIN_SAMPLING, RANDOM_FLIP and HFLIP_TRAIN (a horizontal flip needs both).
    """
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    before = []
    if cfg.INPUT.CROP.ENABLED:
        if cfg.INPUT.CROP.TYPE not in CROP_TYPES:
            raise ConfigError(f"INPUT.CROP.TYPE is one of {', '.join(CROP_TYPES)}, not {cfg.INPUT.CROP.TYPE!r}.")
        crop = RandomCropAroundInstance if cfg.INPUT.CROP.CROP_INSTANCE else T.RandomCrop
        before.append(crop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    if cfg.INPUT.IS_ROTATE:
        before.append(T.RandomApply(T.RandomRotation([-30, 30]), prob=0.5))
    sampling = cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    if sampling == "range" and len(cfg.INPUT.MIN_SIZE_TRAIN) != 2:
        raise ConfigError(
            "INPUT.MIN_SIZE_TRAIN_SAMPLING range needs two values in INPUT.MIN_SIZE_TRAIN, not "
            f"{len(cfg.INPUT.MIN_SIZE_TRAIN)}."
        )
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, sampling)
    return [*before, resize, *_flip(cfg)]
