"""Runs the predictor on the frames of a video or camera."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Optional

import numpy as np
from tqdm import tqdm

from ..errors import ImageError
from ..files import ListFile
from ..visualization.html import write_index
from .inputs import is_live
from .pipeline import Item
from .results import RECORDS, named_results, shown_name, unique_stem
from .runs import Run
from .tracking import Tracker
from .video import Video, source_name, write_video

__all__ = ["VideoRun"]

logger = logging.getLogger(__name__)


class VideoRun(Run):
    """
    See `Run`. Writes the video with the objects drawn, and ``results.json``, where ``image_id`` is the frame's number.

    Args:
        source: video file, number of a camera, or address.
        max_frames: stop after this many readable frames.
        track: follow the objects, see `Tracker`.
        every: run the network on each n-th frame. The others are left out, and the video plays as fast as before.

    Raises:
        ImageError: no frame can be read.
        ConfigError: the tracker is not installed.
    """

    def __init__(
        self,
        predictor,
        output,
        score_threshold,
        batch,
        source: str,
        max_frames: Optional[int] = None,
        track: bool = False,
        every: int = 1,
    ):
        self.tracker = Tracker(score_threshold) if track else None
        super().__init__(predictor, output, score_threshold, batch)
        if self.tracker is not None:
            self.pipeline.score_threshold = self.tracker.detection_threshold
        self.source, self.max_frames, self.every = source, max_frames, every
        self.frames = Video(source, every)
        os.makedirs(output, exist_ok=True)
        self.results = ListFile(os.path.join(output, RECORDS[1]))
        self.entries: list[dict] = []
        self._counts: Counter = Counter()
        self._name = source_name(source)

    def process(self) -> None:
        name = re.sub(r"[^\w-]", "_", self._name) if is_live(self.source) else self.source
        stem = os.path.join(self.output, unique_stem(name, set()))
        written = write_video(stem, self._drawn_frames(), self.frames.fps / self.every)
        entry = {"name": shown_name(self._name), "picture": os.path.basename(written), "video": True}
        self.entries.append({**entry, "counts": self._counts})
        if self.frames.broken:
            total = self.frames.read + self.frames.broken
            logger.warning("%s: %d of %d frames could not be read.", self._name, self.frames.broken, total)

    def _drawn_frames(self) -> Iterator[np.ndarray]:
        """Replaces an unreadable frame by the previous one, or, at the beginning, by the next one."""
        drawn, waiting = None, 0
        count = -(-self.frames.count // self.every)
        total = min(count, self.max_frames or count) or self.max_frames
        items = self.pipeline.run(self._limited(), self._read, self._finish, self._track if self.tracker else None)
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

    def _limited(self) -> Iterator[Optional[np.ndarray]]:
        """The frames up to the last one wanted; a camera may not give a further one for long."""
        readable = 0
        for frame in self.frames:
            yield frame
            readable += frame is not None
            if readable == self.max_frames:
                return

    def _read(self, item: Item) -> None:
        if item.task is None:
            raise ImageError("this frame could not be read")
        item.record = self.predictor.preprocess(item.task, "RGB")

    def _track(self, item: Item) -> None:
        item.output["instances"] = self.tracker.update(item.output["instances"])

    def _finish(self, item: Item) -> None:
        instances = item.output["instances"]
        results = named_results(instances, self.predictor, item.number * self.every + 1, self._name)
        item.result = self.drawn(item.task, item.output), results, self.counts(instances)

    @property
    def objects(self) -> int:
        return self.results.count

    def finish(self) -> str:
        self.results.finish()
        return write_index(self.output, self.entries, "Detections")
