"""Draws the annotations of a data set on their images."""

from collections.abc import Sequence
from typing import Optional

import numpy as np
from detectron2.data.detection_utils import annotations_to_instances

from .overlay import class_name, draw_layers

__all__ = ["draw_annotations"]

KEYS = ("bbox", "bbox_mode", "category_id", "segmentation")


def draw_annotations(
    image_rgb: np.ndarray, dataset_dict: dict, class_names: Optional[Sequence[str]] = None, *, alpha: float = 0.5
) -> np.ndarray:
    """
    A copy of the image with the annotations of its record drawn like detections; crowds are marked.

    Args:
        image_rgb: (H, W, 3) uint8, RGB, of the annotated size.
        dataset_dict: a record in Detectron2's standard format; polygons, RLE and bitmasks may be mixed.
        class_names: name of every contiguous class index.

    Raises:
        ValueError: the image does not have the size in the record.
    """
    size = image_rgb.shape[:2]
    expected = (dataset_dict.get("height", size[0]), dataset_dict.get("width", size[1]))
    if tuple(expected) != tuple(size):
        name = dataset_dict.get("file_name", "the image")
        raise ValueError(f"{name} has {size[1]} x {size[0]} pixels, but its record says {expected[1]} x {expected[0]}")
    annotations = dataset_dict.get("annotations", [])
    tags = [
        class_name(class_names, annotation["category_id"]) + (" (crowd)" if annotation.get("iscrowd", 0) else "")
        for annotation in annotations
    ]
    # Only the fields that are drawn; an annotation with only a box gets an empty mask.
    records = [{"segmentation": [], **{key: a[key] for key in KEYS if key in a}} for a in annotations]
    instances = annotations_to_instances(records, size, mask_format="bitmask")
    masks = list(instances.gt_masks.tensor.numpy().astype(bool)) if annotations else None
    return draw_layers(image_rgb, masks, instances.gt_boxes.tensor.numpy(), tags, alpha=alpha)
