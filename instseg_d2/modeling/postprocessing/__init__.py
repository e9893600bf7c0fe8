"""From network resolution to the requested image size, and to run lengths."""

from .masks import boxes_of_masks, rescored, resize_in_chunks, resized
from .run_lengths import RunLengthMasks

__all__ = ["RunLengthMasks", "boxes_of_masks", "rescored", "resize_in_chunks", "resized"]
