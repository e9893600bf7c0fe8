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
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), dtype=bool)
    columns[:, 1:-1] = mask.T
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])  # starts and ends of runs, alternating
    return _counts((column + x) * size[0] + row + y, size)


def _counts(changes: np.ndarray, size: tuple) -> list[int]:
    """Run lengths of the runs that begin and end, alternating, at these column-major positions."""
    joined = np.flatnonzero(changes[1:-1:2] == changes[2::2])  # a run that goes on at the top of the next column
    changes = np.delete(changes, [2 * joined + 1, 2 * joined + 2])
    last = size[0] * size[1]
    if not len(changes) or changes[-1] != last:
        changes = np.append(changes, last)
    return np.diff(changes, prepend=0).tolist()


def _column_runs(code: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The runs of a code, cut at the ends of columns: their columns, first rows, and rows after the last."""
    # COCO's compression: a number takes characters of five bits, a further bit says that more follow, the last one's
    # highest bit is the sign; from the fourth number on, the differences to the last but one are stored.
    characters = np.frombuffer(code["counts"], dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(characters < 32)
    first = np.append(0, last[:-1] + 1)
    length = last - first + 1
    places = 5 * (np.arange(len(characters)) - np.repeat(first, length))
    counts = np.add.reduceat((characters & 31) << places, first)
    counts -= np.where(characters[last] & 16, 1 << 5 * length, 0)
    counts[1::2] = counts[1::2].cumsum()
    counts[2::2] = counts[2::2].cumsum()
    begin, end = counts.cumsum()[: len(counts) // 2 * 2].reshape(-1, 2).T

    height = code["size"][0]
    parts = (end - 1) // height - begin // height + 1  # of a run that goes on in the next columns
    column = np.repeat(begin // height - parts.cumsum() + parts, parts) + np.arange(parts.sum())
    top = np.maximum(np.repeat(begin, parts) - column * height, 0)
    bottom = np.minimum(np.repeat(end, parts) - column * height, height)
    return column, top, bottom


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

    def window(self, x: int, y: int, size: tuple) -> "RunLengthMasks":
        """
        The masks as seen through a window, computed on the run lengths.

        Args:
            x, y: the window's first column and row in the masks; it may reach beyond them, and there is nothing there.
            size: (H, W) of the window.
        """
        runs = []
        for code in self.codes:
            column, top, bottom = _column_runs(code)
            column, top, bottom = column - x, np.maximum(top - y, 0), np.minimum(bottom - y, size[0])
            seen = (top < bottom) & (column >= 0) & (column < size[1])
            changes = np.stack([top, bottom], 1)[seen] + column[seen, None] * size[0]
            runs.append({"size": size, "counts": _counts(changes.ravel(), size)})
        return RunLengthMasks(mask_util.frPyObjects(runs, *size) if runs else [], size)

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
