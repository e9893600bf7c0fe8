"""Square masks of a data set's objects, in batches. S: side of a mask in pixels."""

from collections.abc import Iterator, Sequence

import numpy as np
import pycocotools.mask as mask_util

from ..errors import DatasetError
from .segmentations import crop_annotation, to_rle

__all__ = ["TrainingMasks"]


class TrainingMasks:
    """
    The masks of the objects in data set dicts, in the order of the dicts, without crowds and empty masks.

    Every iteration computes them again: arrays (m, S, S), uint8, of up to ``batch_size`` masks. ``len`` also counts the
    objects dropped for an empty mask or because of ``min_area``.
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
            size: S.
            max_masks: number of objects to draw at random; 0: all.
            min_area: drop objects of at most this many pixels.
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
        """The mask (S, S) of one annotation; a DatasetError names the image."""
        height, width = record["height"], record["width"]
        try:
            if self.min_area:
                area = mask_util.area(to_rle(annotation["segmentation"], height, width))
                if area <= self.min_area:
                    return np.zeros((self.size, self.size), bool)
            return crop_annotation(annotation, height, width, self.size)
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
