"""Runs the predictor on image files."""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Optional

from tqdm import tqdm

from ..data import common_range, read_image
from ..data.images import further_frames
from ..visualization.html import write_index
from ..visualization.panels import titled_grid
from .pipeline import Item
from .results import RECORDS, Records, label_writer, named_results, relative_names, shown_name, unique_stem
from .runs import Run

__all__ = ["ImageOptions", "ImageRun"]

logger = logging.getLogger(__name__)

EXPLAIN = "_explain"


@dataclass
class ImageOptions:
    """
    What a run on images also takes.

    Attributes:
        explain: also draw what the network sees.
        label_format: also write labels of this format, see `run_demo`.
        polygons: give masks in the results as polygons.
        pictures: whether to draw the objects and write the page.
        resume: continue the run in the folder.
        shard: (i, n): only each n-th image, from the i-th, counted from 1.
    """

    explain: bool = False
    label_format: str = "coco"
    polygons: bool = False
    pictures: bool = True
    resume: bool = False
    shard: tuple[int, int] = (1, 1)

    def only_for_images(self) -> dict[str, bool]:
        """{argument: whether it is used} of those that a video does not have."""
        return {
            "--explain": self.explain,
            f"--format {self.label_format}": self.label_format != "coco",
            "--resume": self.resume,
            "--shard": self.shard != (1, 1),
            "--polygons": self.polygons,
            "--no-pictures": not self.pictures,
        }


class Task(NamedTuple):
    """An image to process: id, path, name in the results, and beginning of the names of its pictures."""

    image_id: int
    file: str
    name: str
    stem: str


class ImageRun(Run):
    """
    See `Run`.

    Args:
        files: all images, also of other shards.
        limit: only so many of them, from the first.

    Raises:
        ConfigError, DatasetError: the labels cannot be written, or the folder has the results of another run.
    """

    def __init__(
        self,
        predictor,
        output,
        score_threshold,
        batch,
        files: Sequence[str],
        options: ImageOptions,
        limit: Optional[int] = None,
    ):
        super().__init__(predictor, output, score_threshold, batch)
        self.files, self.options = files, options
        self._limit = len(files) if limit is None else min(limit, len(files))
        self.labels = label_writer(options.label_format, os.path.join(output, options.label_format), predictor, files)
        os.makedirs(output, exist_ok=True)
        self._common, self._names = relative_names(files)
        self.records = Records(output, self._settings(), options.resume)
        self._range: tuple = ()

    def _settings(self) -> dict:
        """What must be the same in a run that is continued."""
        settings = dataclasses.asdict(self.options)
        del settings["resume"]
        settings.update(self.predictor.settings, folder=self._common, score_threshold=self.score_threshold)
        if self.options.shard[1] > 1:  # the place in the list decides who has an image
            settings["list_of_images"] = hashlib.sha1(json.dumps(self._names).encode()).hexdigest()[:16]
        return settings

    def _tasks(self) -> Iterator[Task]:
        """The images of this shard that are not done."""
        done, (first, step) = self.records.done, self.options.shard
        used = set(done.values())
        later = itertools.count(max([len(self.files), *used]) + 1)
        taken = {os.path.splitext(picture)[0].lower() for picture in self.records.pictures}
        for position, (file, name) in enumerate(zip(self.files, self._names), 1):
            if name in done:
                continue
            stem = unique_stem(file, taken, ("", EXPLAIN))
            if position <= self._limit and position % step == first % step:
                yield Task(next(later) if position in used else position, file, name, stem)

    def process(self) -> None:
        self._range = common_range(self.files[: self._limit], shown_name(self._common), self.predictor.value_range)
        if self.labels is not None:
            for image, results in self.records.both():
                self.labels.add(image, results)
        if self.records.done:
            logger.info("%d images are done already.", len(self.records.done))
        first, step = self.options.shard
        total = len(range(first - 1, self._limit, step))
        items = self.pipeline.run(self._tasks(), self._read, self._finish)
        further = []  # numbers of pages or frames that are not read
        explained = False
        progress = tqdm(items, total=total, initial=min(len(self.records.done), total), unit="image", disable=None)
        for item in progress:
            if item.error is not None:
                self._skip(item)
                continue
            self.note(item)
            entry, results, frames = item.result
            further += filter(None, [frames])
            explained |= "explain" in entry
            if self.labels is not None:
                self.labels.add(entry, results)
            self.records.add(entry, results)
        if further:
            text = "Only the first page or frame of a file is used: %d more in %d files are skipped."
            logger.info(text, sum(further), len(further))
        if self.options.explain and self.done and not explained:
            logger.warning("Nothing to explain: this model has no such pictures, or it found no objects.")

    def _read(self, item: Item) -> None:
        item.image = read_image(item.task.file, "RGB", value_range=self._range)
        item.record = self.predictor.preprocess(item.image, "RGB")

    def _finish(self, item: Item) -> None:
        """Write the pictures; the result is the entry of the image, its objects, and its number of further frames."""
        image_id, file, name, stem = item.task
        instances = item.output["instances"]
        results = named_results(instances, self.predictor, image_id, name, self.options.polygons)
        height, width = instances.image_size
        entry = {"id": image_id, "file_name": name, "width": width, "height": height}
        entry["objects"] = self.counts(instances)
        if self.options.pictures and self.save(f"{stem}.jpg", self.drawn(item.image, item.output), file):
            entry["picture"] = f"{stem}.jpg"
        panels = self.predictor.explain(item.image, channel_order="RGB") if self.options.explain else []
        if panels and self.save(f"{stem}{EXPLAIN}.jpg", titled_grid(panels), file):
            entry["explain"] = f"{stem}{EXPLAIN}.jpg"
        item.result = entry, results, further_frames(file)
        item.image = item.output = None

    def _skip(self, item: Item) -> None:
        self.failed += 1
        file, reason = item.task.file, str(item.error) or "out of memory"
        logger.warning("skipped %s", reason if file in reason else f"{file}: {reason}")
        self.records.add({"id": item.task.image_id, "file_name": item.task.name, "error": reason}, [])

    def _shown(self) -> Iterator[dict]:
        for image in self.records.images():
            if "picture" in image:
                entry = {"name": shown_name(image["file_name"]), "counts": image["objects"]}
                yield {**entry, **{key: image[key] for key in ("picture", "explain") if key in image}}

    @property
    def objects(self) -> int:
        return self.records.results

    @property
    def worked(self) -> bool:
        return self.done + len(self.records.done) > 0

    def finish(self) -> str:
        if self.labels is not None:
            self.labels.finish()
        written = os.path.join(self.output, RECORDS[1])
        if self.options.pictures:
            written = write_index(self.output, self._shown(), "Detections")
        self.records.finish()
        return written
