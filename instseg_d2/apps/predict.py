"""
Detects on image files or a video, and writes pictures, ``results.json`` and ``index.html`` into one folder.

``results.json`` is in COCO's results format (``pycocotools.coco.COCO.loadRes`` reads it) with ``file_name`` and
``category_name`` added. ``image_id`` counts the images, or the frames of a video, from 1 in reading order.
"""

import contextlib
import logging
import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Optional, Union

import cv2
import numpy as np
import torch
from detectron2.structures import Instances
from tqdm import tqdm

from ..data import common_range, read_image
from ..data.images import further_frames
from ..data.labels import Writer
from ..errors import ConfigError
from ..files import write_bytes
from ..inference.predictor import Predictor
from ..visualization.html import write_index
from ..visualization.overlay import draw_instances, draw_panoptic
from ..visualization.panels import titled_grid
from .inputs import find_inputs, is_video
from .results import ResultsFile, label_writer, named_results, relative_names, shown_name, unique_stem
from .video import Video, write_video

__all__ = ["run_demo"]

logger = logging.getLogger(__name__)

JPEG_QUALITY = 90
FIRST_IMAGES = 8  # used to report the best score if nothing reaches the threshold


def run_demo(
    predictor: Predictor,
    inputs: Union[str, os.PathLike, Sequence],
    output: Union[str, os.PathLike],
    *,
    score_threshold: float = 0.5,
    max_images: Optional[int] = None,
    explain: bool = False,
    label_format: str = "coco",
) -> bool:
    """
    Detect on every input and write the pictures, ``results.json`` and ``index.html`` into ``output``.

    Files that cannot be read and pictures that cannot be written are reported and skipped. An interrupted run writes
    what is done so far; a killed run leaves its results in ``results.jsonl``.

    Args:
        inputs: paths, folders, globs, or one video.
        output: folder, created if missing; not the folder of the inputs.
        score_threshold: instances that score lower are dropped, for every method.
        max_images: stop after this many images or frames.
        explain: also draw what the network sees in every image.
        label_format: "coco": only ``results.json``; "labelme", "yolo", "label-studio" or "png": also labels for this
            program, or VOC's maps of the objects, in a folder of this name.

    Returns:
        True if at least one image was processed.

    Raises:
        FileNotFoundError, ImageError, ConfigError: an input or argument is invalid.
        OSError: the results cannot be written.
    """
    if not 0 <= score_threshold <= 1:
        raise ConfigError(f"the score threshold must be between 0 and 1; got {score_threshold}")
    if max_images is not None and max_images < 1:
        raise ConfigError(f"the number of images must be at least 1; got {max_images}")
    files, output = find_inputs(inputs)[:max_images], os.path.expanduser(output)
    folders = {os.path.realpath(os.path.dirname(file)) for file in files}
    if os.path.realpath(output) in folders:
        raise ConfigError(f"{output} contains the input files, which would be overwritten; choose another folder")
    if os.path.exists(output) and not os.path.isdir(output):
        raise ConfigError(f"{output} is a file; the output must be a folder")
    if explain and is_video(files[0]):
        raise ConfigError(f"{files[0]} is a video; --explain works only on images")
    labels = label_writer(label_format, os.path.join(output, label_format), predictor, files)
    video = Video(files[0]) if is_video(files[0]) else None
    os.makedirs(output, exist_ok=True)
    run = _Run(predictor, output, score_threshold, labels)
    try:
        if video is not None:
            run.video(video, files[0], max_images)
        else:
            run.images(files, explain)
    except KeyboardInterrupt:
        logger.warning("Stopped; writing what is done so far.")
    except BaseException:
        with contextlib.suppress(OSError):
            run.finish()
        raise
    index = run.finish()
    run.report()
    logger.info("Written: %s", index)
    return run.done > 0


class _Run:
    """The state of one call of :func:`run_demo`."""

    def __init__(self, predictor: Predictor, output: str, score_threshold: float, labels: Optional[Writer]):
        self.predictor, self.output, self.score_threshold = predictor, output, score_threshold
        self.results = ResultsFile(output)
        self.labels = labels
        self.entries: list[dict] = []
        self.seconds: dict[str, list[float]] = {"load": [], "network": [], "draw": []}
        self.first: list[dict] = []  # records, to report the best score if nothing reaches the threshold
        self.done = self.failed = self.unwritten = 0

    def images(self, files: Sequence[str], explain: bool) -> None:
        common, names = relative_names(files)
        value_range = common_range(files, shown_name(common), self.predictor.value_range)
        taken: set[str] = set()
        further = []  # numbers of pages or frames that are not read
        for file, name in zip(tqdm(files, unit="image", disable=None), names):
            start = time.perf_counter()
            try:
                image = read_image(file, "RGB", value_range=value_range)
                record = self.predictor.preprocess(image, "RGB")
                loaded = time.perf_counter()
                panels = self.predictor.explain(image, channel_order="RGB") if explain else []
                drawn, instances = self.detect(image, record)
            except (ValueError, OSError, MemoryError, torch.cuda.OutOfMemoryError) as error:
                self.failed += 1
                reason = str(error) or "out of memory"
                logger.warning("skipped %s", reason if file in reason else f"{file}: {reason}")
                continue
            self.seconds["load"].append(loaded - start)
            counts = self.keep(instances, self.done, name)
            further += filter(None, [further_frames(file)])
            stem = unique_stem(file, taken, ("", "_explain"))
            entry = {"name": shown_name(name), "picture": f"{stem}.jpg", "counts": counts}
            written = self.save(entry["picture"], drawn, file)
            if panels and self.save(f"{stem}_explain.jpg", titled_grid(panels), file):
                entry["explain"] = f"{stem}_explain.jpg"
            if written:
                self.entries.append(entry)
        if further:
            text = "Only the first page or frame of a file is used: %d more in %d files are skipped."
            logger.info(text, sum(further), len(further))
        if explain and self.entries and not any("explain" in entry for entry in self.entries):
            logger.warning("Nothing to explain: this model has no such pictures, or it found no objects.")

    def video(self, frames: Video, file: str, max_frames: Optional[int]) -> None:
        name = os.path.basename(file)
        counts: Counter = Counter()

        def drawn_frames():
            """Replaces an unreadable frame by the previous one, or, at the beginning, by the next one."""
            drawn, waiting = None, 0
            total = min(frames.count, max_frames or frames.count) or None
            start = time.perf_counter()
            for number, image in enumerate(tqdm(frames, total=total, unit="frame", disable=None), 1):
                if image is None:
                    waiting += 1
                    continue
                record = self.predictor.preprocess(image, "RGB")
                self.seconds["load"].append(time.perf_counter() - start)
                before = drawn
                drawn, instances = self.detect(image, record)
                counts.update(self.keep(instances, number, name))
                yield from [drawn if before is None else before] * waiting
                yield drawn
                waiting = 0
                if self.done == max_frames:
                    return
                start = time.perf_counter()

        stem = os.path.join(self.output, unique_stem(file, set()))
        written = write_video(stem, drawn_frames(), frames.fps)
        picture = os.path.basename(written)
        self.entries.append({"name": shown_name(name), "picture": picture, "counts": counts, "video": True})
        if frames.broken:
            total = frames.read + frames.broken
            logger.warning("%s: %d of %d frames could not be read.", file, frames.broken, total)

    def detect(self, image: np.ndarray, record: dict) -> tuple[np.ndarray, Instances]:
        """Run the network on one image; returns the picture with the objects drawn, and the objects."""
        start = time.perf_counter()
        output = self.predictor.outputs([record], self.score_threshold)[0]
        instances = output["instances"]
        network = time.perf_counter()
        if len(self.first) < FIRST_IMAGES:
            self.first.append(record)
        names = self.predictor.class_names, self.predictor.stuff_names
        if "panoptic_seg" in output:
            drawn = draw_panoptic(image, *output["panoptic_seg"], *names, score_threshold=self.score_threshold)
        else:
            drawn = draw_instances(image, instances, names[0])
        self.done += 1
        self.seconds["network"].append(network - start)
        self.seconds["draw"].append(time.perf_counter() - network)
        return drawn, instances

    def keep(self, instances: Instances, image_id: int, name: str) -> Counter:
        """Add the objects of an image to the results; returns their number per class name."""
        results = named_results(instances, self.predictor, image_id, name)
        self.results.add(results)
        if self.labels is not None:
            height, width = instances.image_size
            self.labels.add({"file_name": name, "height": height, "width": width}, results)
        return Counter(self.predictor.class_name(index) for index in instances.pred_classes.tolist())

    def save(self, name: str, image_rgb: np.ndarray, file: str) -> bool:
        """Write a picture of a file; on failure log a warning and return False."""
        try:
            encoded, data = cv2.imencode(".jpg", image_rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            if not encoded:
                raise OSError("a side of a JPEG has at most 65500 pixels")
            write_bytes(os.path.join(self.output, name), data.tobytes())
            return True
        except OSError as error:
            self.unwritten += 1
            logger.warning("the picture %s of %s cannot be written: %s", name, file, error.strerror or error)
            return False

    def best_score(self) -> str:
        """A sentence on the best score in the first images, without a threshold."""
        found = (self.predictor.predict([record], masks="none")[0] for record in self.first)
        scores = [float(x.scores.max()) for x in found if len(x)]
        where = f" in the first {FIRST_IMAGES} images" if self.done > FIRST_IMAGES else ""
        return f"the best score{where} is {max(scores):.3f}" if scores else f"the model found nothing{where}"

    def finish(self) -> str:
        """Write ``results.json``, the labels and ``index.html``; return the path of the latter."""
        self.results.finish()
        if self.labels is not None:
            self.labels.finish()
        return write_index(self.output, self.entries, "Detections")

    def report(self) -> None:
        """Log what was done."""
        if self.done == 0:
            logger.warning("No image could be processed.")
            return
        times = ", ".join(f"{stage} {1e3 * statistics.median(s):.1f} ms" for stage, s in self.seconds.items())
        skipped = f", {self.failed} skipped" if self.failed else ""
        if self.unwritten:
            skipped += f", {self.unwritten} picture{'s' * (self.unwritten > 1)} not written"
        logger.info("%d done%s, %d objects; medians: %s", self.done, skipped, self.results.count, times)
        for what, count in self.labels.notes.items() if self.labels is not None else ():
            logger.info("%s: %d", what, count)
        if not self.results.count:
            logger.warning("Nothing reaches the score threshold of %g: %s.", self.score_threshold, self.best_score())
