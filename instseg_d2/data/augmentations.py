"""The augmentations of the recipes, as Detectron2 augmentations."""

import numpy as np
import torch
from detectron2.data import transforms as T
from PIL import Image
from torchvision.transforms import v2

from ..methods import method_of

__all__ = [
    "ColorJitter",
    "QuarterTurn",
    "RandomCropAroundInstance",
    "RandomVerticalFlip",
    "ScaleJitter",
    "build_augmentations",
    "build_resize",
    "resized_shape",
]


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


def resized_shape(resize: T.ResizeShortestEdge, height: int, width: int) -> tuple[int, int]:
    """The (height, width) of an image after ``resize``, which may draw them."""
    transform = resize.get_transform(np.broadcast_to(0, (height, width)))
    return (transform.new_h, transform.new_w) if isinstance(transform, T.ResizeTransform) else (height, width)


class ScaleJitter(T.Augmentation):
    """
    Resizes like ``resize``, times a factor from ``low`` to ``high``. With ``crop``, larger images are then cropped to
    the size without the factor, around a random object; smaller ones stay, and are padded with their batch.
    """

    def __init__(self, resize: T.ResizeShortestEdge, low: float, high: float, crop: bool = True):
        super().__init__()
        self._init(locals())

    def get_transform(self, image, boxes):
        """``image`` (H, W, C) and ``boxes`` (N, 4), x0 y0 x1 y1 in pixels, or None."""
        height, width = image.shape[:2]
        frame = resized_shape(self.resize, height, width)
        factor = np.random.uniform(self.low, self.high)
        new_height, new_width = (max(round(side * factor), min(side, 2)) for side in frame)
        resize = T.ResizeTransform(height, width, new_height, new_width, Image.BILINEAR)
        if not self.crop or (new_height <= frame[0] and new_width <= frame[1]):
            return resize
        boxes = None if boxes is None else resize.apply_box(boxes)
        crop = RandomCropAroundInstance("absolute", frame)
        return T.TransformList([resize, crop.get_transform(np.broadcast_to(0, (new_height, new_width)), boxes)])


class _VerticalFlip(T.VFlipTransform):
    """Detectron2's copies the image, and PyTorch warns of those that cannot be written."""

    def apply_image(self, image):
        return image[::-1]


class RandomVerticalFlip(T.RandomFlip):
    """Flips vertically half of the time."""

    def __init__(self):
        super().__init__(horizontal=False, vertical=True)

    def get_transform(self, image):
        flip = super().get_transform(image)
        return _VerticalFlip(flip.height) if isinstance(flip, T.VFlipTransform) else flip


class _QuarterTurns(T.Transform):
    """Turns an image (H, W) by ``count`` times 90 degrees, counterclockwise."""

    def __init__(self, height: int, width: int, count: int):
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, image):
        return np.rot90(image, self.count)

    def apply_coords(self, coords):
        x, y = coords[:, 0], coords[:, 1]
        turned = {1: (y, self.width - x), 2: (self.width - x, self.height - y), 3: (self.height - y, x)}
        return np.stack(turned[self.count], axis=1)


class QuarterTurn(T.Augmentation):
    """Turns by 0, 90, 180 or 270 degrees."""

    def get_transform(self, image):
        count = int(np.random.randint(4))
        return _QuarterTurns(*image.shape[:2], count) if count else T.NoOpTransform()


class ColorJitter(T.Augmentation):
    """torchvision's ``ColorJitter``, with its arguments, for arrays (H, W, 3) with the channels in this order."""

    def __init__(self, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, image_format: str = "BGR"):
        super().__init__()
        self._init(locals())
        self._jitter = v2.ColorJitter(brightness, contrast, saturation, hue)

    def _changed(self, image: np.ndarray) -> np.ndarray:
        order = np.s_[..., ::-1] if self.image_format == "BGR" else np.s_[...]
        planes = torch.from_numpy(np.ascontiguousarray(image[order].transpose(2, 0, 1)))
        return self._jitter(planes).numpy().transpose(1, 2, 0)[order]

    def get_transform(self, image):
        return T.ColorTransform(self._changed)


def _flips(cfg) -> list:
    kind, flips = cfg.INPUT.RANDOM_FLIP, []
    if kind == "horizontal" and cfg.INPUT.HFLIP_TRAIN:
        flips.append(T.RandomFlip())
    if kind == "vertical" or cfg.INPUT.VERTICAL_FLIP:
        flips.append(RandomVerticalFlip())
    if cfg.INPUT.ROTATION.QUARTER_TURNS:
        flips.append(QuarterTurn())
    return flips


def _color(cfg) -> list:
    given = cfg.INPUT.COLOR_JITTER
    strengths = (given.BRIGHTNESS, given.CONTRAST, given.SATURATION, given.HUE)
    return [ColorJitter(*strengths, cfg.INPUT.FORMAT)] if any(strengths) else []


def _rotation(cfg) -> list:
    degrees = cfg.INPUT.ROTATION.DEGREES
    if degrees:
        return [T.RandomRotation([-degrees, degrees], expand=False)]
    return [T.RandomApply(T.RandomRotation([-30, 30]), prob=0.5)] if cfg.INPUT.IS_ROTATE else []


def _crop(cfg, scheme: str) -> T.Augmentation:
    crop = cfg.INPUT.CROP
    if scheme == "detr":
        resize = T.ResizeShortestEdge(DETR_SIZES, sample_style="choice")
        return T.RandomApply(T.AugmentationList([resize, T.RandomCrop(crop.TYPE, crop.SIZE)]), prob=0.5)
    return (RandomCropAroundInstance if crop.CROP_INSTANCE else T.RandomCrop)(crop.TYPE, crop.SIZE)


def build_resize(cfg) -> T.ResizeShortestEdge:
    """The resizing of training images, from INPUT.MIN_SIZE_TRAIN, MAX_SIZE_TRAIN and MIN_SIZE_TRAIN_SAMPLING."""
    # With "batch", the loader builds augmentations for each size, and all images of a batch use the same.
    style = "range" if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range" else "choice"
    return T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, style)


def _scaled(cfg, mosaic: bool) -> T.Augmentation:
    scale = tuple(cfg.INPUT.MOSAIC.SCALE if mosaic else cfg.INPUT.SCALE_JITTER)
    return build_resize(cfg) if scale == (1, 1) else ScaleJitter(build_resize(cfg), *scale, crop=not mosaic)


def build_augmentations(cfg, is_train: bool, mosaic: bool = False) -> list:
    """
    For training: crop, rotate, resize the shorter side, flip, turn by quarters and change the colours, in this order.
    For testing: only resize; nothing with TEST.TILE, since the tiles are resized. With ``mosaic``: for an image that
    becomes a part of a mosaic.

    With DETR's crop scheme (Carion et al., arXiv 2005.12872, section 4): flip and turn; for half of the images,
    resize the shorter side to 400, 500 or 600 (the longer side is not limited) and crop; rotate; resize; change the
    colours.

    With LSJ_AUG (large-scale jitter: Ghiasi et al., arXiv 2012.07177) instead: flip and turn, rotate, scale by 0.1 to 2
    relative to 1024 pixels, change the colours, and crop 1024 x 1024; smaller images are padded with grey.

    Reads from INPUT: CROP.{ENABLED, SCHEME, TYPE, SIZE, CROP_INSTANCE}, IS_ROTATE, MIN_SIZE_*, MAX_SIZE_*,
    MIN_SIZE_TRAIN_SAMPLING, RANDOM_FLIP and HFLIP_TRAIN (a horizontal flip needs both), VERTICAL_FLIP, ROTATION,
    SCALE_JITTER, COLOR_JITTER, MOSAIC.SCALE and FORMAT.
    """
    if not is_train:
        if cfg.TEST.TILE.SIZE:
            return []
        return [T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice")]
    before, after = [], _flips(cfg)
    if cfg.LSJ_AUG:
        # The padding contains no objects, so masks are padded with 0.
        crop = T.FixedSizeCrop((LSJ_SIZE, LSJ_SIZE), pad_value=128.0, seg_pad_value=0)
        resize = T.ResizeScale(0.1, 2.0, LSJ_SIZE, LSJ_SIZE)
        return [*after, *_rotation(cfg), resize, *_color(cfg), crop]
    if cfg.INPUT.CROP.ENABLED:
        scheme = cfg.INPUT.CROP.SCHEME or method_of(cfg).crop_scheme
        if scheme == "detr":
            before, after = after, []
        before.append(_crop(cfg, scheme))
    return [*before, *_rotation(cfg), _scaled(cfg, mosaic), *after, *_color(cfg)]
