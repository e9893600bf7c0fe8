"""Masks as COCO's run lengths, a few hundred bytes each at any image size. D masks, H x W pixels."""

from collections.abc import Iterable, Sequence
from typing import Union

import numpy as np
import pycocotools.mask as mask_util
import torch

from .masks import masks_to_boxes


def run_lengths(mask: np.ndarray, x: int, y: int, size: tuple) -> list[int]:
    """
    Column-major run lengths, background first, of a mask that is empty outside one part of the image.

    Args:
        mask: (h, w) bool, the part.
        x, y: its first column and row in the image.
        size: (H, W) of the image, pixels.
    """
    height, width = size
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), dtype=bool)
    columns[:, 1:-1] = mask.T
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])  # starts and ends of runs, alternating
    changes = (column + x) * height + row + y
    if mask.shape[0] == height:  # a run may continue at the top of the next column
        joined = np.flatnonzero(changes[1:-1:2] == changes[2::2])
        changes = np.delete(changes, [2 * joined + 1, 2 * joined + 2])
    last = height * width
    if not len(changes) or changes[-1] != last:
        changes = np.append(changes, last)
    return np.diff(changes, prepend=0).tolist()


class RunLengthMasks:
    """
    Masks that replace a tensor (D, H, W) as a field of Detectron2's Instances.

    Args:
        codes: COCO's compressed run lengths, one {"size": [H, W], "counts": bytes} per mask.
        size: (H, W).
    """

    def __init__(self, codes: Sequence[dict], size: tuple):
        self.codes = list(codes)
        self.size = tuple(size)

    @classmethod
    def encode(cls, masks: torch.Tensor) -> "RunLengthMasks":
        """Encode boolean masks (D, H, W) as pycocotools does, but read only the pixels inside their tight boxes."""
        size = tuple(masks.shape[-2:])
        boxes = masks_to_boxes(masks).int().tolist()
        masks = masks.cpu().numpy()
        return cls.of_patches(((y1, x1, mask[y1:y2, x1:x2]) for mask, (x1, y1, x2, y2) in zip(masks, boxes)), size)

    @classmethod
    def of_patches(cls, patches: Iterable, size: tuple) -> "RunLengthMasks":
        """
        Of masks that are empty outside a part.

        Args:
            patches: for each mask the first row and column of the part, and the part (h, w) bool.
            size: (H, W) of the masks.
        """
        runs = [{"size": size, "counts": run_lengths(part, x, y, size)} for y, x, part in patches]
        return cls(mask_util.frPyObjects(runs, *size) if runs else [], size)

    def decode(self) -> torch.Tensor:
        """The masks as (D, H, W) bool."""
        masks = np.zeros((len(self), *self.size), dtype=bool)
        for mask, code in zip(masks, self.codes):
            mask[:] = mask_util.decode(code)
        return torch.from_numpy(masks)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, item: Union[int, slice, Sequence, torch.Tensor]) -> "RunLengthMasks":
        chosen = np.arange(len(self))[item.cpu().numpy() if isinstance(item, torch.Tensor) else item]
        return RunLengthMasks([self.codes[i] for i in np.atleast_1d(chosen)], self.size)

    def to(self, *args, **kwargs) -> "RunLengthMasks":
        """Return itself: run lengths are not on a device."""
        return self

    @staticmethod
    def cat(parts: Sequence["RunLengthMasks"]) -> "RunLengthMasks":
        """Concatenate the masks of at least one part."""
        return RunLengthMasks([code for part in parts for code in part.codes], parts[0].size)
