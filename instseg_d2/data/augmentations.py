"""The augmentations of the recipes, as Detectron2 augmentations."""

import numpy as np
from detectron2.data import transforms as T

from ..methods import method_of

__all__ = ["RandomCropAroundInstance", "build_augmentations"]


DETR_SIZES = (400, 500, 600)  # shorter side in pixels, before the crop of DETR's scheme
LSJ_SIZE = 1024  # side in pixels of the output of large-scale jitter


class RandomCropAroundInstance(T.RandomCrop):
    """
    Crops a window that contains the centre of a random object, drawn uniformly from all such windows. An image without
    objects is cropped anywhere.

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
    if kind == "none" or (kind == "horizontal" and not cfg.INPUT.HFLIP_TRAIN):
        return []
    return [T.RandomFlip(horizontal=kind == "horizontal", vertical=kind == "vertical")]


def _crop(cfg, scheme: str) -> T.Augmentation:
    crop = cfg.INPUT.CROP
    if scheme == "detr":
        resize = T.ResizeShortestEdge(DETR_SIZES, sample_style="choice")
        return T.RandomApply(T.AugmentationList([resize, T.RandomCrop(crop.TYPE, crop.SIZE)]), prob=0.5)
    return (RandomCropAroundInstance if crop.CROP_INSTANCE else T.RandomCrop)(crop.TYPE, crop.SIZE)


def build_augmentations(cfg, is_train: bool) -> list:
    """
    For training: crop, rotate, resize the shorter side and flip, in this order. For testing: only resize.

    With DETR's crop scheme (Carion et al., arXiv 2005.12872, section 4): flip; for half of the images, resize the
    shorter side to 400, 500 or 600 (the longer side is not limited) and crop; rotate; resize.

    With LSJ_AUG (large-scale jitter: Ghiasi et al., arXiv 2012.07177) instead: flip, scale by 0.1 to 2 relative to
    1024 pixels, and crop 1024 x 1024; smaller images are padded with grey.

    Reads from INPUT: CROP.{ENABLED, SCHEME, TYPE, SIZE, CROP_INSTANCE}, IS_ROTATE, MIN_SIZE_*, MAX_SIZE_*,
    MIN_SIZE_TRAIN_SAMPLING, RANDOM_FLIP and HFLIP_TRAIN (a horizontal flip needs both).
    """
    if not is_train:
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    before, after = [], _flip(cfg)
    if cfg.LSJ_AUG:
        # The padding contains no objects, so masks are padded with 0.
        crop = T.FixedSizeCrop((LSJ_SIZE, LSJ_SIZE), pad_value=128.0, seg_pad_value=0)
        return [*after, T.ResizeScale(0.1, 2.0, LSJ_SIZE, LSJ_SIZE), crop]
    if cfg.INPUT.CROP.ENABLED:
        scheme = cfg.INPUT.CROP.SCHEME or method_of(cfg).crop_scheme
        if scheme == "detr":
            before, after = after, []
        before.append(_crop(cfg, scheme))
    if cfg.INPUT.IS_ROTATE:
        before.append(T.RandomApply(T.RandomRotation([-30, 30]), prob=0.5))
    # With "batch", the loader builds augmentations for each size, and all images of a batch use the same.
    style = "range" if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" else "choice"
    resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, style)
    return [*before, resize, *after]
