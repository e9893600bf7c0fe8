"""From network resolution to the requested image size, for methods whose masks cover the whole image."""

from .masks import boxes_of_masks, rescored, resize_in_chunks, resized

__all__ = ["boxes_of_masks", "rescored", "resize_in_chunks", "resized"]
