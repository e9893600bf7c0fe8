"""
The masks that an embedding is fitted to: cropped by their boxes, streamed from data set dicts, in bounded memory.

s: side of the square masks; b, n: masks; H, W: an image's height and width in pixels.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch

from ...data.segmentations import to_rle
from ...errors import DatasetError
from ..ground_truth import annotation_mask

__all__ = ["PackedMasks", "TrainingMasks", "regrouped"]


class TrainingMasks:
    """
    The masks of the objects of data set dicts, crowds and empty ones left out, in the order of the dicts.

    Iterating makes them, anew each time: arrays (b, s, s), uint8, of up to ``batch_size`` masks. ``len`` counts the
    objects before empty masks and ``min_area`` are looked at.
    """

    def __init__(
        self,
        records: Sequence[dict],
        size: int,
        *,
        max_masks: int = 0,
        min_area: float = 0,
        batch_size: int = 256,
        seed: int = 0,
    ):
        """
        Args:
            records: dicts of Detectron2's standard data set format.
            size: s.
            max_masks: draw so many objects at random; 0: take all.
            min_area: leave out objects of at most so many pixels.
        """
        self.records = records
        self.size = size
        self.min_area = min_area
        self.batch_size = batch_size
        pairs = [
            (i, j)
            for i, record in enumerate(records)
            for j, annotation in enumerate(record.get("annotations", ()))
            if not annotation.get("iscrowd", 0)
        ]
        self._pairs = np.array(pairs, np.int32).reshape(-1, 2)
        if 0 < max_masks < len(pairs):
            chosen = np.random.default_rng(seed).choice(len(pairs), max_masks, replace=False)
            self._pairs = self._pairs[np.sort(chosen)]

    def __len__(self) -> int:
        return len(self._pairs)

    def _crop(self, record: dict, annotation: dict) -> np.ndarray:
        """Raises DatasetError that names the image."""
        height, width = record["height"], record["width"]
        try:
            if self.min_area:
                area = mask_util.area(to_rle(annotation["segmentation"], height, width))
                if area <= self.min_area:
                    return np.zeros((self.size, self.size), bool)
            return annotation_mask(annotation, height, width, self.size)
        except DatasetError as error:
            raise DatasetError(f"{record.get('file_name', 'an image')}: {error}.") from error

    def __iter__(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self._pairs), self.batch_size):
            crops = []
            for i, j in self._pairs[start : start + self.batch_size]:
                record = self.records[i]
                crops.append(self._crop(record, record["annotations"][j]))
            kept = [crop for crop in crops if crop.any()]
            if kept:
                yield np.stack(kept).astype(np.uint8)


def regrouped(mask_batches: Iterable, size: int) -> Iterator[np.ndarray]:
    """The rows of all batches in batches of ``size`` rows; the last one has up to 2 size - 1."""
    waiting = np.zeros(0)
    for batch in mask_batches:
        waiting = np.concatenate([waiting, batch]) if len(waiting) else np.asarray(batch)
        while len(waiting) >= 2 * size:
            yield waiting[:size]
            waiting = waiting[size:]
    if len(waiting):
        yield waiting


class PackedMasks:
    """Masks in a temporary file, eight pixels a byte, to be read many times in any order."""

    def __init__(self, mask_batches: Iterable, size: int):
        """
        Args:
            mask_batches: arrays or tensors (b, s, s) of 0 and 1, read once.
            size: s.
        """
        self.size = size
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the object)
        for batch in mask_batches:
            self._file.write(np.packbits(np.asarray(batch, bool).reshape(len(batch), -1), axis=1).tobytes())
        self._file.flush()
        row = -(-size * size // 8)
        self._count = self._file.tell() // row
        self._rows = np.memmap(self._file, np.uint8, "r", shape=(self._count, row)) if self._count else None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index) -> torch.Tensor:
        """A slice or (n,) indices -> float32 (n, s, s) of 0 and 1."""
        bits = np.unpackbits(self._rows[index], axis=1, count=self.size**2)
        return torch.from_numpy(bits).float().unflatten(1, (self.size, self.size))
