"""
Verifies an export: the file is run on real images and must give the results of the PyTorch model.

All N slots are compared, whether they pass a threshold or not. K classes, h x w pixels of a mask.
"""

import copy
import dataclasses
import math
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import ImageList

from ..data.images import read_image
from ..inference.predictor import Predictor
from ..methods import method_of
from .runtime import ExportedPredictor, first_line

__all__ = ["Parity", "compare"]

MAX_SCORE_DIFFERENCE = 1e-3
MIN_IOU = 0.99


@dataclasses.dataclass
class Parity:
    """Result of a comparison: how much was compared, the worst differences, median milliseconds per batch."""

    images: int = 0
    scores: int = 0  # slots with a score above 0
    masks: int = 0  # slots with a mask that is not empty
    score_difference: float = 0.0
    label_difference: float = 0.0  # between the scores of the two labels of a slot
    mask_iou: float = 1.0
    pytorch_ms: float = float("nan")
    exported_ms: float = float("nan")
    error: str = ""  # why the file cannot be run

    @property
    def failure(self) -> str:
        """Why the file differs from the model, in one sentence; empty if it does not."""
        if self.error:
            return self.error
        if not self.scores or not self.masks:
            return (
                f"nothing was compared: of {self.images} images no slot has a score above 0 and a mask; "
                "give images with objects, or trained weights"
            )
        worst = max(self.score_difference, self.label_difference)
        if not worst <= MAX_SCORE_DIFFERENCE:
            return f"scores differ from PyTorch's by {worst:.2g}, more than {MAX_SCORE_DIFFERENCE}"
        if not self.mask_iou >= MIN_IOU:
            return f"a mask has IoU {self.mask_iou:.4f} with PyTorch's, less than {MIN_IOU}"
        return ""

    def add(self, expected, found, threshold: float) -> None:
        """
        Compare the results on one image.

        Args:
            expected: PyTorch's class scores (N, K), scores (N,), labels (N,) and masks (N, h, w), without a threshold.
            found: the file's scores (N,), labels (N,) and masks (N, h, w).
            threshold: on the class score; a slot closer to it than the tolerance may fall on either side.
        """
        class_score, score, labels, masks = expected
        best = class_score.amax(1)
        as_object, as_nothing = (found[0] - score).abs(), found[0].abs()
        difference = torch.where(best > threshold, as_object, as_nothing)
        near = (best - threshold).abs() <= MAX_SCORE_DIFFERENCE
        difference[near] = torch.minimum(as_object, as_nothing)[near]
        of_labels = class_score.gather(1, torch.stack([labels, found[1]], 1))
        label_difference = (of_labels[:, 0] - of_labels[:, 1]).abs()
        union = (masks | found[2]).flatten(1).sum(1)
        iou = (masks & found[2]).flatten(1).sum(1)[union > 0] / union[union > 0]
        self.images += 1
        self.scores += int((found[0] > 0).sum())
        self.masks += len(iou)
        worst = float(torch.nan_to_num(difference, nan=float("inf")).max())
        self.score_difference = max(self.score_difference, worst)
        self.label_difference = max(self.label_difference, float(label_difference.max()))
        self.mask_iou = min([self.mask_iou, *iou.tolist()])


@torch.no_grad()
def reference(predictor: Predictor, records: Sequence[dict], canvas: tuple[int, int]) -> list[tuple]:
    """
    PyTorch's results on preprocessed RGB images when every slot is a detection, whatever its score.

    Args:
        canvas: (H, W) of the file's input, before it is padded to what the model needs.

    Returns:
        for each image class scores (N, K), scores (N,), labels (N,) and masks (N, height, width) bool, in the order of
        the slots; 0 and empty where a score is not a number.
    """
    original, of_classes = predictor.model, []
    graph, unit = method_of(predictor.cfg).exportable(original), max(1, original.size_divisibility)

    def preprocess(records):
        images = original.preprocess(records)
        bottom, right = (-(-side // unit) * unit - now for side, now in zip(canvas, images.tensor.shape[-2:]))
        return ImageList(F.pad(images.tensor, (0, right, 0, bottom)), images.image_sizes)

    def infer(images):
        of_classes.extend(graph.slots(images)[0])
        return type(original).infer(model, images)

    def postprocess(result, size, masks=True):
        scaled = original.postprocess(result, size, masks)
        scaled.slots = result.slots
        return scaled

    model = copy.copy(original)
    model.preprocess, model.infer, model.postprocess = preprocess, infer, postprocess
    model.score_threshold, model.max_detections = -math.inf, math.inf
    if model.input_format == "BGR":
        records = [{**x, "image": x["image"].flip(0)} for x in records]
    results = []
    for x, classes in zip(model.detect(records, -math.inf), of_classes):
        found = x["instances"].to("cpu")
        slots = found.slots
        scores, labels = torch.zeros(len(classes)), torch.zeros(len(classes), dtype=torch.int64)
        masks = torch.zeros((len(classes), *found.image_size), dtype=torch.bool)
        scores[slots], labels[slots], masks[slots] = found.scores, found.pred_classes, found.pred_masks
        results.append((classes.cpu().nan_to_num(0.0), scores, labels, masks))
    return results


def compare(predictor: Predictor, exported: ExportedPredictor, files: Sequence[str], repeats: int = 3) -> Parity:
    """
    Run both on images and compare the results.

    A file with a fixed batch gets batches filled up with mirrored copies, one with a free batch alternates between
    one and two images. If the size is free, the first image is also run rotated by 90 degrees.

    Args:
        files: image files.
        repeats: timed runs of each, alternating, on the last image.
    """
    parity, free = Parity(), exported.metadata["size"] is None
    images = [read_image(file, "RGB", value_range=predictor.value_range) for file in files]
    turned = [np.rot90(images[0])] if free else []
    for index, image in enumerate([*images, *turned]):
        record = exported.preprocess(np.ascontiguousarray(image), "RGB")
        count = exported.metadata["batch"] or 1 + index % 2
        mirrored = {**record, "image": record["image"].flip(2)}
        records = [(record, mirrored)[i % 2] for i in range(count)]
        expected = reference(predictor, records, exported.canvas(record["image"]))
        try:
            results = exported.run(records)
        except Exception as error:  # the runtimes raise all kinds
            size = " x ".join(map(str, record["image"].shape[-2:]))
            parity.error = f"it fails on {count} images of {size} pixels ({first_line(error)})"
            return parity
        for one, *found in zip(expected, *results):
            parity.add(one, found, exported.metadata["class_score_threshold"])
    _time(parity, predictor, exported, images[-1], repeats)
    return parity


def _time(parity: Parity, predictor: Predictor, exported: ExportedPredictor, image, repeats: int) -> None:
    seconds: tuple[list, list] = ([], [])
    for one, times in ((predictor, seconds[0]), (exported, seconds[1])) * (repeats + 1):
        records = [one.preprocess(image, "RGB")] * (exported.metadata["batch"] or 1)
        start = time.perf_counter()
        one.predict(records)
        times.append(time.perf_counter() - start)
    parity.pytorch_ms, parity.exported_ms = (1e3 * statistics.median(times[1:]) for times in seconds)
