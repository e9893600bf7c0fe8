"""Runs the predictor on the frames of a video."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from typing import Optional

import numpy as np
from tqdm import tqdm

from ..errors import ImageError
from ..files import ListFile
from ..visualization.html import write_index
from .pipeline import Item
from .results import RECORDS, named_results, shown_name, unique_stem
from .runs import Run
from .video import Video, write_video

__all__ = ["VideoRun"]

logger = logging.getLogger(__name__)


class VideoRun(Run):
    """
    See `Run`. Writes the video with the objects drawn, and ``results.json``, where ``image_id`` is the frame's number.

    Args:
        file: video file.
        max_frames: stop after this many readable frames.

    Raises:
        ImageError: no frame can be read.
    """

    def __init__(self, predictor, output, score_threshold, batch, file: str, max_frames: Optional[int]):
        super().__init__(predictor, output, score_threshold, batch)
        self.file, self.max_frames = file, max_frames
        self.frames = Video(file)
        os.makedirs(output, exist_ok=True)
        self.results = ListFile(os.path.join(output, RECORDS[1]))
        self.entries: list[dict] = []
        self._counts: Counter = Counter()
        self._name = os.path.basename(file)

    def process(self) -> None:
        stem = os.path.join(self.output, unique_stem(self.file, set()))
        written = write_video(stem, self._drawn_frames(), self.frames.fps)
        entry = {"name": shown_name(self._name), "picture": os.path.basename(written), "video": True}
        self.entries.append({**entry, "counts": self._counts})
        if self.frames.broken:
            total = self.frames.read + self.frames.broken
            logger.warning("%s: %d of %d frames could not be read.", self.file, self.frames.broken, total)

    def _drawn_frames(self) -> Iterator[np.ndarray]:
        """Replaces an unreadable frame by the previous one, or, at the beginning, by the next one."""
        drawn, waiting = None, 0
        total = min(self.frames.count, self.max_frames or self.frames.count) or None
        items = self.pipeline.run(self.frames, self._read, self._finish)
        for item in tqdm(items, total=total, unit="frame", disable=None):
            if item.task is None:
                waiting += 1
                continue
            if item.error is not None:
                raise item.error
            self.note(item)
            before = drawn
            drawn, results, counts = item.result
            self.results.add(results)
            self._counts.update(counts)
            yield from [drawn if before is None else before] * waiting
            yield drawn
            waiting = 0
            if self.done == self.max_frames:
                return

    def _read(self, item: Item) -> None:
        if item.task is None:
            raise ImageError("this frame could not be read")
        item.record = self.predictor.preprocess(item.task, "RGB")

    def _finish(self, item: Item) -> None:
        instances = item.output["instances"]
        results = named_results(instances, self.predictor, item.number + 1, self._name)
        item.result = self.drawn(item.task, item.output), results, self.counts(instances)

    @property
    def objects(self) -> int:
        return self.results.count

    def finish(self) -> str:
        self.results.finish()
        return write_index(self.output, self.entries, "Detections")
