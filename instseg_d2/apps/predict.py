"""
Detection on image files or a video: pictures, ``results.json`` and ``index.html`` in one folder.

``results.json`` is in COCO's results format (``pycocotools.coco.COCO.loadRes`` reads it) with ``file_name`` and
``category_name`` added. ``image_id`` counts the images from 1 in the order they were read, in a video its frames.
"""

import glob
import json
import logging
import os
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from typing import Optional

import cv2
import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances
from tqdm import tqdm

from ..data.images import read_image
from ..errors import ConfigError
from ..evaluation.coco import coco_results
from ..files import write_bytes
from ..inference.predictor import Predictor
from ..visualization.html import write_index
from ..visualization.overlay import draw_instances, draw_panoptic
from ..visualization.panels import titled_grid
from .video import read_video, write_video

__all__ = ["find_inputs", "run_demo"]

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jp2")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv")
JPEG_QUALITY = 90
LOOK_AGAIN = 8  # images, to tell the best score where nothing reaches the threshold


def is_video(path: str) -> bool:
    return path.lower().endswith(VIDEO_SUFFIXES)


def find_inputs(patterns: Sequence[str]) -> list[str]:
    """
    The files that paths, folders (their images, not those of folders inside), globs (``**`` too) and registered data
    sets name, each once.

    Raises:
        FileNotFoundError: a name matches nothing, a folder holds no image.
        ConfigError: a video beside other inputs.
    """
    files: dict[str, None] = {}
    for pattern in patterns:
        if os.path.isfile(pattern):
            found = [pattern]
        elif os.path.isdir(pattern):
            found = [e.path for e in os.scandir(pattern) if e.is_file() and e.name.lower().endswith(IMAGE_SUFFIXES)]
            if not found:
                raise FileNotFoundError(f"{pattern}: no image in this folder ({', '.join(IMAGE_SUFFIXES)})")
        elif pattern in DatasetCatalog.list():
            found = [record["file_name"] for record in DatasetCatalog.get(pattern)]
        else:
            found = [name for name in glob.glob(pattern, recursive=True) if os.path.isfile(name)]
            if not found:
                raise FileNotFoundError(f"{pattern}: no such file, folder or registered data set")
        files.update(dict.fromkeys(sorted(found)))
    if len(files) > 1 and any(map(is_video, files)):
        raise ConfigError(f"{next(filter(is_video, files))}: a video must be the only input")
    return list(files)


def run_demo(
    predictor: Predictor,
    inputs: Sequence[str],
    output: str,
    *,
    score_threshold: float = 0.5,
    max_images: Optional[int] = None,
    explain: bool = False,
) -> bool:
    """
    Detect on every input and write the pictures, ``results.json`` and ``index.html`` into ``output``.

    A file that cannot be read is reported and skipped. Ctrl-C ends the run with what is done so far.

    Args:
        inputs: paths, folders, globs, or one video.
        output: folder, made where missing; not the folder of the inputs.
        score_threshold: instances with a lower score appear nowhere, whatever the method.
        max_images: stop after so many images or frames.
        explain: add a picture of what the network sees to every image.

    Returns:
        True if at least one image was processed.

    Raises:
        FileNotFoundError, ImageError, ConfigError: the inputs or arguments cannot be used.
    """
    if not 0 <= score_threshold <= 1:
        raise ConfigError(f"the score threshold must be between 0 and 1; got {score_threshold}")
    if max_images is not None and max_images < 1:
        raise ConfigError(f"the number of images must be at least 1; got {max_images}")
    files = find_inputs(inputs)[:max_images]
    folders = {os.path.realpath(os.path.dirname(file)) for file in files}
    if os.path.realpath(output) in folders:
        raise ConfigError(f"{output}: holds the input files, which would be overwritten; choose another output folder")
    if os.path.exists(output) and not os.path.isdir(output):
        raise ConfigError(f"{output}: is a file; name a folder for the output")
    if explain and is_video(files[0]):
        raise ConfigError("only images are explained, not videos")
    os.makedirs(output, exist_ok=True)
    run = _Run(predictor, output, score_threshold)
    try:
        if is_video(files[0]):
            run.video(files[0], max_images)
        else:
            run.images(files, explain)
    except KeyboardInterrupt:
        logger.warning("Stopped; writing what is done so far.")
    run.finish()
    return run.done > 0


class _Run:
    """What one call of :func:`run_demo` collects."""

    def __init__(self, predictor: Predictor, output: str, score_threshold: float):
        self.predictor, self.output, self.score_threshold = predictor, output, score_threshold
        self.results: list[dict] = []
        self.entries: list[dict] = []
        self.seconds: dict[str, list[float]] = {"load": [], "network": [], "draw": []}
        self.first: list[dict] = []  # records, for the best score where nothing reaches the threshold
        self.done = self.failed = 0

    def images(self, files: Sequence[str], explain: bool) -> None:
        common = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
        taken: set[str] = set()
        for file in tqdm(files, unit="image", disable=None):
            start = time.perf_counter()
            try:
                image = read_image(file, "RGB")
                record = self.predictor.preprocess(image, "RGB")
            except (ValueError, OSError) as error:
                self.failed += 1
                logger.warning("skipped %s", error if str(file) in str(error) else f"{file}: {error}")
                continue
            loaded = time.perf_counter()
            name = os.path.relpath(os.path.abspath(file), common)
            drawn, counts = self.detect(image, record, name, loaded - start)
            stem = _free_stem(file, taken)
            entry = {"name": name, "picture": f"{stem}.jpg", "counts": counts}
            self.save(entry["picture"], drawn)
            panels = self.predictor.explain(image, channel_order="RGB") if explain else []
            if panels:
                entry["explain"] = f"{stem}_explain.jpg"
                self.save(entry["explain"], titled_grid(panels))
            self.entries.append(entry)
        if explain and self.entries and not any("explain" in entry for entry in self.entries):
            logger.warning("Nothing to explain: this model has no such pictures, or found no object.")

    def video(self, file: str, max_frames: Optional[int]) -> None:
        frames, count, fps = read_video(file)
        name = os.path.basename(file)
        counts: Counter = Counter()

        def drawn_frames():
            start = time.perf_counter()
            total = min(count, max_frames or count) or None
            for image in tqdm(frames, total=total, unit="frame", disable=None):
                try:
                    record = self.predictor.preprocess(image, "RGB")
                    drawn, in_frame = self.detect(image, record, name, time.perf_counter() - start)
                except KeyboardInterrupt:
                    logger.warning("Stopped; the video ends here.")
                    return
                counts.update(in_frame)
                yield drawn
                if self.done == max_frames:
                    return
                start = time.perf_counter()

        written = write_video(os.path.join(self.output, os.path.splitext(name)[0]), drawn_frames(), fps)
        self.entries.append({"name": name, "picture": os.path.basename(written), "counts": counts, "video": True})

    def detect(self, image: np.ndarray, record: dict, name: str, load_seconds: float):
        """Run the network on one image; returns the drawn image and the number of objects by class name."""
        start = time.perf_counter()
        output = self.predictor.outputs([record], self.score_threshold)[0]
        instances = output["instances"]
        network = time.perf_counter()
        if len(self.first) < LOOK_AGAIN:
            self.first.append(record)
        names = self.predictor.class_names, self.predictor.stuff_names
        if "panoptic_seg" in output:
            drawn = draw_panoptic(image, *output["panoptic_seg"], *names, score_threshold=self.score_threshold)
        else:
            drawn = draw_instances(image, instances, names[0])
        self.done += 1
        self.seconds["load"].append(load_seconds)
        self.seconds["network"].append(network - start)
        self.seconds["draw"].append(time.perf_counter() - network)
        self.results += _coco_results(instances, self.predictor, self.done, name)
        return drawn, Counter(self.predictor.class_name(index) for index in instances.pred_classes.tolist())

    def save(self, name: str, image_rgb: np.ndarray) -> None:
        _, data = cv2.imencode(".jpg", image_rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        write_bytes(os.path.join(self.output, name), data.tobytes())

    def best_score(self) -> str:
        """What the model finds in the first images when no score is too low."""
        found = (self.predictor.predict([record], masks="none")[0] for record in self.first)
        scores = [float(x.scores.max()) for x in found if len(x)]
        where = f" in the first {LOOK_AGAIN} images" if self.done > LOOK_AGAIN else ""
        return f"the best score{where} is {max(scores):.3f}" if scores else f"the model found nothing{where}"

    def finish(self) -> None:
        lines = ",\n".join(json.dumps(result) for result in self.results)
        write_bytes(os.path.join(self.output, "results.json"), f"[{lines}]\n".encode())
        index = write_index(self.output, self.entries, "Detections")
        if self.done == 0:
            logger.warning("No image could be processed.")
            return
        times = ", ".join(f"{stage} {1e3 * statistics.median(s):.1f} ms" for stage, s in self.seconds.items())
        skipped = f", {self.failed} skipped" if self.failed else ""
        logger.info("%d done%s, %d objects; medians: %s", self.done, skipped, len(self.results), times)
        if not self.results:
            logger.warning("Nothing reaches the score threshold of %g: %s.", self.score_threshold, self.best_score())
        logger.info("Written: %s", index)


def _free_stem(file: str, taken: set[str]) -> str:
    """The file's name without suffix, numbered where an earlier picture has it; both its pictures become taken."""
    base = os.path.splitext(os.path.basename(file))[0]
    stem, number = base, 1
    while {stem.lower(), f"{stem}_explain".lower()} & taken:
        number += 1
        stem = f"{base}_{number}"
    taken |= {stem.lower(), f"{stem}_explain".lower()}
    return stem


def _coco_results(instances: Instances, predictor: Predictor, image_id: int, name: str) -> list[dict]:
    results = coco_results(instances, image_id)
    for result in results:
        index = result["category_id"]
        result["category_id"] = predictor.category_id(index)
        result["category_name"] = predictor.class_name(index)
        result["bbox"] = [round(value, 3) for value in result["bbox"]]
        result["score"] = round(result["score"], 6)
        result["file_name"] = name
    return results
