"""Converts data set dicts to model inputs, for every method. H' x W' pixels after augmentation."""

import logging
from typing import Optional

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks

from ..errors import DatasetError, ImageError
from ..methods import method_of
from .augmentations import RandomCropAroundInstance, build_augmentations
from .eight_bits import checked_range
from .images import read_image
from .segmentations import mask_box, paint_semantic, to_rle, transform_bitmasks, transform_polygons, transform_semantic

__all__ = ["MIN_VISIBLE", "InstanceDatasetMapper", "boxes_of"]

logger = logging.getLogger(__name__)

EMPTY = 1e-5  # pixels; boxes without a longer side are dropped, as in Detectron2
THIN = 20  # times as long as wide: resizing may reduce the width to 0
MIN_VISIBLE = 0.1  # share of an object: if an augmentation leaves less, the object is dropped


class InstanceDatasetMapper:
    """
    Reads, augments and converts one sample in Detectron2's standard data set format.

    The result keeps file_name, image_id, height and width (of the original image) and adds

    * image: uint8 (3, H', W'), contiguous, channels in the order of INPUT.FORMAT;
    * instances (training): gt_boxes, gt_classes and, with masks, gt_masks, without crowds and objects that augmentation
      removed. An image without objects has these fields with length 0;
    * basis_sem (training, with ``semantic_target``): int64 (H', W'), thing class + 1, see ``paint_semantic``;
    * sem_seg (training, if the sample has a sem_seg_file_name): int64 (H', W').

    gt_masks are PolygonMasks if ``mask_format`` is "polygon", every object of the image has polygons and nothing is
    cropped; otherwise BitMasks. In sem_seg the corners that a rotation leaves empty, and padding, are ``unlabelled``.

    Raises ImageError if an image is missing, broken, too thin to resize or not of the annotated size, and DatasetError
    if a mask is missing or of the wrong size. Both name the image.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        augmentations: list,
        image_format: str = "BGR",
        use_masks: bool = True,
        mask_format: str = "polygon",
        crops: bool = False,
        rotates: bool = False,
        rotates_crops: bool = False,
        min_visible: float = 0.0,
        semantic_target: bool = False,
        unlabelled: int = 255,
        value_range: tuple = (),
    ):
        """
        Args:
            is_train: add the ground truth.
            augmentations: Detectron2 augmentations; they may use image and boxes.
            image_format: "BGR" or "RGB".
            use_masks: make gt_masks.
            mask_format: "polygon" or "bitmask".
            crops, rotates: whether the augmentations crop or rotate; boxes are then recomputed from the masks.
            rotates_crops: whether they rotate what they have cropped.
            min_visible: drop objects if a smaller share of their box remains in the image.
            semantic_target: make basis_sem.
            unlabelled: label of pixels to be ignored.
            value_range: see ``read_image``.
        """
        if mask_format not in ("polygon", "bitmask"):
            raise ValueError(f"mask_format must be polygon or bitmask; got {mask_format!r}")
        if image_format not in ("BGR", "RGB"):
            raise ValueError(f"image_format must be BGR or RGB; got {image_format!r}")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.use_masks = use_masks
        self.mask_format = mask_format
        self.crops = crops
        self.rotates = rotates
        self.rotates_crops = rotates_crops
        self.min_visible = min_visible
        self.semantic_target = semantic_target
        self.unlabelled = unlabelled
        self.value_range = checked_range(value_range)
        logger.info(f"augmentations in {'training' if is_train else 'inference'}: {augmentations}")

    @classmethod
    def from_config(cls, cfg, is_train: bool = True):
        method, given = method_of(cfg), cfg.INPUT
        scales_up, rotates = max(given.SCALE_JITTER) > 1, given.IS_ROTATE or given.ROTATION.DEGREES > 0
        jitters = scales_up or given.ROTATION.DEGREES > 0
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "use_masks": cfg.MODEL.MASK_ON or method.needs_masks,
            "mask_format": cfg.INPUT.MASK_FORMAT,
            "crops": is_train and (given.CROP.ENABLED or cfg.LSJ_AUG or jitters),
            "rotates": is_train and rotates,
            "rotates_crops": is_train and rotates and given.CROP.ENABLED,
            "min_visible": MIN_VISIBLE if is_train and jitters else 0.0,
            "semantic_target": is_train and method.semantic_target(cfg),
            "unlabelled": cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
            "value_range": cfg.INPUT.VALUE_RANGE,
        }

    def __call__(self, dataset_dict: dict, window: Optional[tuple] = None) -> dict:
        """
        Map one data set dict, which is not changed.

        Args:
            window: (height, width) to which the augmented image is cropped, around a random object, if it is larger.
        """
        sample = dict(dataset_dict)
        annotations = sample.pop("annotations", None)
        sem_seg_file = sample.pop("sem_seg_file_name", None)
        image = self._read(sample)
        size = image.shape[:2]
        sample["height"], sample["width"] = size

        has_truth = self.is_train and annotations is not None
        boxes = boxes_of(annotations) if has_truth else None
        aug_input = T.AugInput(image, boxes=boxes)
        transforms = self._augment(aug_input, sample)
        if window is not None:
            transforms = transforms + RandomCropAroundInstance("absolute", window)(aug_input)
        image = aug_input.image
        sample["image"] = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.is_train and sem_seg_file:
            labels = detection_utils.read_image(sem_seg_file, "L")[:, :, 0]
            if labels.shape != size:
                raise DatasetError(
                    f"{sem_seg_file} has {labels.shape[1]} x {labels.shape[0]} pixels, but its image has {size[1]} x "
                    f"{size[0]}."
                )
            sample["sem_seg"] = transform_semantic(labels, transforms)
            if self.rotates or self.crops:
                inside = transforms.apply_segmentation(np.ones(size, np.uint8))
                sample["sem_seg"][torch.from_numpy(inside == 0)] = self.unlabelled
        if has_truth:
            try:
                self._add_truth(sample, annotations, aug_input.boxes, transforms, size, image.shape[:2])
            except DatasetError as error:
                raise DatasetError(f"{sample['file_name']}: {error}.") from error
        return sample

    def _read(self, sample: dict) -> np.ndarray:
        size = (sample["width"], sample["height"]) if "width" in sample and "height" in sample else None
        image = read_image(sample["file_name"], self.image_format, size, self.value_range)
        if size is not None and size != image.shape[1::-1]:
            raise ImageError(
                f"{sample['file_name']} has {image.shape[1]} x {image.shape[0]} pixels (width x height), "
                f"but its annotation says {size[0]} x {size[1]}."
            )
        return image

    def _augment(self, aug_input: T.AugInput, sample: dict):
        """Apply the augmentations to ``aug_input`` and return the transforms."""
        height, width = aug_input.image.shape[:2]
        too_thin = f"{sample['file_name']} is too thin to resize: its {width} x {height} pixels become"
        try:
            transforms = self.augmentations(aug_input)
        except ValueError as error:  # from Pillow, for a side of 0 pixels
            if max(height, width) < THIN * min(height, width):
                raise
            raise ImageError(f"{too_thin} none.") from error
        new_height, new_width = aug_input.image.shape[:2]
        if min(new_height, new_width) < 2:
            raise ImageError(f"{too_thin} {new_width} x {new_height}.")
        return transforms

    def _add_truth(self, sample, annotations, boxes, transforms, size, new_size) -> None:
        needs_masks = self.use_masks or self.semantic_target
        masks = [annotation.get("segmentation") for annotation in annotations]
        if needs_masks and not all(mask is not None and len(mask) for mask in masks):
            raise DatasetError("an annotation has no mask, but MODEL.MASK_ON or the method needs one")
        if needs_masks and self.rotates_crops:
            # Rotating cropped polygons would bring back the removed parts in the corners: use pixels.
            masks = [to_rle(mask, *size) for mask in masks]
        if self.semantic_target:
            canvas = paint_semantic(masks, [annotation["category_id"] for annotation in annotations], *size)
            sample["basis_sem"] = transform_semantic(canvas, transforms)

        visible = _visible_share(np.asarray(boxes), new_size) >= self.min_visible
        kept = [i for i, annotation in enumerate(annotations) if visible[i] and not annotation.get("iscrowd", 0)]
        instances = Instances(tuple(new_size))
        instances.gt_boxes = Boxes(np.asarray(boxes)[kept])
        instances.gt_classes = torch.tensor([annotations[i]["category_id"] for i in kept], dtype=torch.int64)
        if self.use_masks:
            instances.gt_masks = self._masks([masks[i] for i in kept], transforms, size, new_size)
            if self.crops or self.rotates:
                instances.gt_boxes = _tight_boxes(instances.gt_masks)
        instances.gt_boxes.clip(tuple(new_size))
        sample["instances"] = _without_empty(instances)

    def _masks(self, masks, transforms, size, new_size):
        """
        The masks as PolygonMasks or BitMasks. Detectron2 needs another package to clip polygons to a crop; rasterising
        them at the new size has the same effect.
        """
        polygons = self.mask_format == "polygon" and not self.crops and all(isinstance(mask, list) for mask in masks)
        if polygons:
            return PolygonMasks(transform_polygons(masks, transforms))
        return transform_bitmasks(masks, transforms, tuple(size), tuple(new_size))


def _tight_boxes(masks) -> Boxes:
    """Those of BitMasks or PolygonMasks; Detectron2's function for BitMasks takes seven times as long."""
    if isinstance(masks, PolygonMasks):
        return masks.get_bounding_boxes()
    return Boxes(np.array([mask_box(mask) for mask in masks.tensor.numpy()], np.float32).reshape(-1, 4))


def _without_empty(instances: Instances) -> Instances:
    """Without empty boxes and masks. Detectron2's function always copies the masks."""
    kept = instances.gt_boxes.nonempty(EMPTY)
    if instances.has("gt_masks"):
        masks = instances.gt_masks
        kept &= masks.nonempty() if isinstance(masks, PolygonMasks) else _not_zero(masks.tensor)
    return instances if kept.all() else instances[kept]


def _not_zero(masks: torch.Tensor) -> torch.Tensor:
    """Whether each mask (M, H, W) has a pixel: (M,). PyTorch's function takes sixty times as long."""
    return torch.from_numpy(masks.numpy().any((1, 2)))


def boxes_of(annotations: list) -> np.ndarray:
    """Boxes of all annotations, float64 (M, 4), x0 y0 x1 y1 in pixels."""
    modes = {annotation["bbox_mode"] for annotation in annotations}
    boxes = np.array([annotation["bbox"] for annotation in annotations], dtype=np.float64).reshape(-1, 4)
    if len(modes) > 1:
        return np.array(
            [BoxMode.convert(tuple(b), a["bbox_mode"], BoxMode.XYXY_ABS) for a, b in zip(annotations, boxes)]
        )
    return BoxMode.convert(boxes, modes.pop(), BoxMode.XYXY_ABS) if modes else boxes


def _visible_share(boxes: np.ndarray, size) -> np.ndarray:
    """The share of each box (M, 4), x0 y0 x1 y1, that lies in an image of this (H, W): (M,); 1 for empty boxes."""
    height, width = size
    inside = boxes.clip(0, [width, height, width, height])
    area, area_inside = ((x[:, 2:] - x[:, :2]).prod(1) for x in (boxes, inside))
    return np.where(area > 0, area_inside / np.where(area > 0, area, 1), 1.0)
