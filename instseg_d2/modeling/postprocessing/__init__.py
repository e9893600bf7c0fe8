"""Postprocessing of detections: filtering, masks at the output size, run lengths."""

from .detections import (
    MASK_FORMATS,
    check_mask_format,
    filter_detections,
    place_boxes,
    postprocess_in_chunks,
    select_detections,
    set_mask_format,
    topk_in_order,
)
from .masks import masks_to_boxes, rescore, resize_in_chunks, resize_masks
from .panoptic import Combination
from .run_lengths import RunLengthMasks

__all__ = [
    "MASK_FORMATS",
    "Combination",
    "RunLengthMasks",
    "check_mask_format",
    "filter_detections",
    "masks_to_boxes",
    "place_boxes",
    "postprocess_in_chunks",
    "rescore",
    "resize_in_chunks",
    "resize_masks",
    "select_detections",
    "set_mask_format",
    "topk_in_order",
]
