"""What a run of the predictor on images and one on a video share: drawing, results, pictures and the report."""

import logging
import os
import statistics
from array import array
from collections import Counter
from typing import Optional

import cv2
import numpy as np
from detectron2.structures import Instances

from ..data.labels import Writer
from ..files import write_bytes
from ..inference.image_predictor import ImagePredictor
from ..visualization.overlay import draw_instances, draw_panoptic
from .pipeline import Item, Pipeline

__all__ = ["Run", "write_jpeg"]

logger = logging.getLogger(__name__)

JPEG_QUALITY = 90
# The first images are used to report the best score if nothing reaches the threshold.
FIRST_IMAGES, FIRST_PIXELS = 8, 1 << 24


def write_jpeg(path: str, image_rgb: np.ndarray) -> None:
    """Write a picture (H, W, 3) uint8. Raises OSError if it is too large for a JPEG or cannot be written."""
    encoded, data = cv2.imencode(".jpg", image_rgb[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise OSError("a side of a JPEG has at most 65500 pixels")
    write_bytes(path, data.tobytes())


class Run:
    """
    Args:
        predictor: a predictor.
        output: folder, created if missing.
        score_threshold: instances that score lower are dropped.
        batch: number of images at a time.

    Attributes:
        done, failed: number of images or frames that were processed, and skipped.
        objects: number in the results.
    """

    labels: Optional[Writer] = None
    objects: int

    def __init__(self, predictor: ImagePredictor, output: str, score_threshold: float, batch: int):
        self.predictor, self.output, self.score_threshold = predictor, output, score_threshold
        self.pipeline = Pipeline(predictor, batch, score_threshold)
        self.done = self.failed = self.unwritten = 0
        self._seconds = {stage: array("f") for stage in ("load", "network", "draw")}
        self._first: list[dict] = []  # inputs of the network

    def process(self) -> None:
        """Process all images or frames."""
        raise NotImplementedError

    def finish(self) -> str:
        """Write the results and the page; return the path of what to look at."""
        raise NotImplementedError

    def drawn(self, image: np.ndarray, output: dict) -> np.ndarray:
        """The image with its objects or segments drawn."""
        names = self.predictor.class_names, self.predictor.stuff_names
        if "panoptic_seg" in output:
            return draw_panoptic(image, *output["panoptic_seg"], *names, score_threshold=self.score_threshold)
        return draw_instances(image, output["instances"], names[0])

    def counts(self, instances: Instances) -> Counter:
        """Number of objects per class name."""
        return Counter(self.predictor.class_name(index) for index in instances.pred_classes.tolist())

    def note(self, item: Item) -> None:
        """Count an item that has gone through, for the report."""
        self.done += 1
        pixels = sum(record["height"] * record["width"] for record in self._first)
        if len(self._first) < FIRST_IMAGES and pixels < FIRST_PIXELS:
            self._first.append(item.record)
        for stage, seconds in item.seconds.items():
            self._seconds.setdefault(stage, array("f")).append(seconds)

    def save(self, name: str, image_rgb: np.ndarray, file: str) -> bool:
        """Write a picture of a file; on failure log a warning and return False."""
        try:
            write_jpeg(os.path.join(self.output, name), image_rgb)
            return True
        except OSError as error:
            self.unwritten += 1
            logger.warning("the picture %s of %s cannot be written: %s", name, file, error.strerror or error)
            return False

    def _best_score(self) -> str:
        """A sentence on the best score in the first images, without a threshold."""
        found = (self.predictor.predict([record], masks="none")[0] for record in self._first)
        scores = [float(x.scores.max()) for x in found if len(x)]
        count = len(self._first)
        where = f" in the first {count} image{'s' * (count > 1)}" if self.done > count else ""
        return f"the best score{where} is {max(scores):.3f}" if scores else f"the model found nothing{where}"

    @property
    def worked(self) -> bool:
        """Whether at least one image was processed, also in a run that is continued."""
        return self.done > 0

    def report(self) -> None:
        """Log what was done."""
        if self.done == 0:
            if not self.worked:
                logger.warning("No image could be processed.")
            return
        times = ", ".join(f"{stage} {1e3 * statistics.median(s):.1f} ms" for stage, s in self._seconds.items())
        skipped = f", {self.failed} skipped" if self.failed else ""
        if self.unwritten:
            skipped += f", {self.unwritten} picture{'s' * (self.unwritten > 1)} not written"
        logger.info("%d done%s, %d objects; medians: %s", self.done, skipped, self.objects, times)
        pipeline = self.pipeline
        if pipeline.batches < pipeline.images:
            text = "%d images in %d batches, %.0f %% of their pixels padding"
            logger.info(text, pipeline.images, pipeline.batches, 100 * pipeline.padding)
        for what, count in self.labels.notes.items() if self.labels is not None else ():
            logger.info("%s: %d", what, count)
        if not self.objects:
            logger.warning("Nothing reaches the score threshold of %g: %s.", self.score_threshold, self._best_score())
