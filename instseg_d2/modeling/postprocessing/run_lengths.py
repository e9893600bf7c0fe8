"""Masks as COCO's run lengths, a few hundred bytes each at any image size. D masks, H x W pixels."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Union

import numpy as np
import pycocotools.mask as mask_util
import torch

from .masks import masks_to_boxes

TOGETHER = 64  # masks that are encoded at the same time: those of a large image have millions of runs


def _changes(mask: np.ndarray, x: int, y: int, height: int) -> np.ndarray:
    """
    Where the runs of a mask (h, w) bool begin and end, alternating, in the column-major pixels of an image: inside the
    mask are its pixels from column x and row y, elsewhere it is empty.
    """
    columns = np.zeros((mask.shape[1], mask.shape[0] + 2), dtype=bool)
    columns[:, 1:-1] = mask.T
    column, row = np.nonzero(columns[:, 1:] != columns[:, :-1])
    return (column + x) * height + row + y


def _encoded(changes: np.ndarray, mask: np.ndarray, count: int, size: tuple) -> list[dict]:
    """
    The codes of masks.

    Args:
        changes: (n,) column-major positions where their runs, cut at the ends of columns, begin and end, alternating.
        mask: (n,) the index of the mask of each, ascending.
        count: number of masks, at least one, also of empty ones.
        size: (H, W) of the masks.
    """
    pixels, every = size[0] * size[1], np.arange(count)
    kept = np.ones(len(changes), dtype=bool)
    goes_on = (changes[1:-1:2] == changes[2::2]) & (mask[1:-1:2] == mask[2::2])  # at the top of the next column
    kept[1:-1:2] &= ~goes_on
    kept[2::2] &= ~goes_on
    owner = np.concatenate([every, mask[kept], every])
    order = owner.argsort(kind="stable")
    counts = np.diff(np.concatenate([np.zeros_like(every), changes[kept], np.full_like(every, pixels)])[order])
    owner = owner[order]
    first, last = owner[1:] != owner[:-1], np.append(owner[2:] != owner[1:-1], True)
    kept = ~first & ~(last & (counts == 0) & (pixels > 0))  # not between two masks, and no empty run at the end
    of_masks = np.split(counts[kept], np.searchsorted(owner[1:][kept], every[1:]))
    runs = [{"size": size, "counts": part.tolist()} for part in of_masks]
    return mask_util.frPyObjects(runs, *size)


def _runs(codes: Sequence[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The foreground's runs: the indices of their masks, and where they begin and end in column-major order."""
    # COCO's compression: a number takes characters of five bits, a further bit says that more follow, the last one's
    # highest bit is the sign; from the fourth number on, the differences to the last but one are stored.
    characters = np.frombuffer(b"".join(code["counts"] for code in codes), dtype=np.uint8).astype(np.int64) - 48
    last = np.flatnonzero(characters < 32)
    first = np.append(0, last[:-1] + 1)
    length = last - first + 1
    places = 5 * (np.arange(len(characters)) - np.repeat(first, length))
    counts = np.add.reduceat((characters & 31) << places, first)
    counts -= np.where(characters[last] & 16, 1 << 5 * length, 0)

    starts = np.searchsorted(first, np.cumsum([0] + [len(code["counts"]) for code in codes[:-1]]))  # of each mask
    mask = np.repeat(np.arange(len(codes)), np.diff(starts, append=len(counts)))
    place = np.arange(len(counts)) - starts[mask]  # in its mask
    odd = place % 2 == 1
    for chain in (odd, ~odd & (place > 0)):
        total, begins = counts[chain].cumsum(), place[chain] <= 2
        before = np.append(0, total)[np.flatnonzero(begins)]
        counts[chain] = total - before[np.cumsum(begins) - 1]
    total, mask_of_run = np.append(0, counts.cumsum()), mask[odd]
    end = total[1:][odd] - total[starts[mask_of_run]]
    return mask_of_run, end - counts[odd], end


def _column_runs(codes: Sequence[dict], height: int) -> tuple[np.ndarray, ...]:
    """
    The runs of masks of one height, cut at the ends of columns: the indices of their masks, their columns, first rows,
    and rows after the last; ordered.
    """
    mask, begin, end = _runs(codes)
    parts = (end - 1) // height - begin // height + 1  # of a run that goes on in the next columns
    column = np.repeat(begin // height - parts.cumsum() + parts, parts) + np.arange(parts.sum())
    top = np.maximum(np.repeat(begin, parts) - column * height, 0)
    bottom = np.minimum(np.repeat(end, parts) - column * height, height)
    return np.repeat(mask, parts), column, top, bottom


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
        patches, codes = iter(patches), []
        while changes := [_changes(part, x, y, size[0]) for y, x, part in itertools.islice(patches, TOGETHER)]:
            mask = np.repeat(np.arange(len(changes)), [len(x) for x in changes])
            codes += _encoded(np.concatenate(changes), mask, len(changes), size)
        return cls(codes, size)

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
        codes = []
        for start in range(0, len(self), TOGETHER):
            some = self.codes[start : start + TOGETHER]
            mask, column, top, bottom = _column_runs(some, self.size[0])
            column, top, bottom = column - x, np.maximum(top - y, 0), np.minimum(bottom - y, size[0])
            seen = (top < bottom) & (column >= 0) & (column < size[1])
            changes = (np.stack([top, bottom], 1) + column[:, None] * size[0])[seen]
            codes += _encoded(changes.ravel(), mask[seen].repeat(2), len(some), size)
        return RunLengthMasks(codes, size)

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
