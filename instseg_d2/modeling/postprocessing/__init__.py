"""From the network's detections to those of the output: which are kept, their masks at its size, run lengths."""

from .detections import MASK_FORMS, best_slots, check_mask_form, in_parts, kept, set_mask_form
from .masks import boxes_of_masks, rescored, resize_in_chunks, resized
from .run_lengths import RunLengthMasks

__all__ = [
    "MASK_FORMS",
    "RunLengthMasks",
    "best_slots",
    "boxes_of_masks",
    "check_mask_form",
    "in_parts",
    "kept",
    "rescored",
    "resize_in_chunks",
    "resized",
    "set_mask_form",
]
