"""
Verifies an 8-bit file, whose results differ a little from PyTorch's by nature: by its AP on labelled images, or by how
many detections it loses and how well their masks overlap. D detections.
"""

import contextlib
import dataclasses
import io
import logging
import re
import tempfile
from collections.abc import Sequence

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import Instances, pairwise_iou
from scipy.optimize import linear_sum_assignment
from tqdm import tqdm

from ..console import is_terminal
from ..data.coco import class_difference, class_names
from ..data.loader import build_test_loader
from ..errors import ConfigError
from ..evaluation import build_evaluator, leaves_out
from ..inference.predictor import Predictor
from ..inference.tiles import in_tiles, seen_by_network
from ..methods import method_of
from .parity import reference, time_both
from .runtime import ExportedPredictor

__all__ = ["Accuracy", "check_classes", "compare_on_data", "compare_on_images"]

MAX_DROP = 0.5  # of AP, in points of 100
MIN_MEAN_IOU = 0.95
MIN_MAP_SHARE = 0.95  # of the pixels
MAX_LOST = 0.02  # of the detections
SCORE = 0.5  # of the detections that count
SCORE_SLACK = 0.1  # a partner may score less by this
PARTNER_IOU = 0.5


@dataclasses.dataclass
class Accuracy:
    """
    Result of a comparison.

    Attributes:
        images: how many were compared; detections: of PyTorch's, with a score of at least SCORE.
        lost: of these, without a partner in the file's; added: the file's without one in PyTorch's.
        mean_iou: of the pairs, of masks, or of boxes where there are no masks.
        map_shares: of each image, the share of the pixels with the same semantic class, if there are maps.
        data: the labelled set; empty: detections were compared. metric: what was measured on it, of PyTorch and of the
            file, both 0-100.
        pytorch_ms, exported_ms: median milliseconds per batch.
    """

    images: int = 0
    detections: int = 0
    lost: int = 0
    added: int = 0
    mean_iou: float = 0.0
    map_shares: list = dataclasses.field(default_factory=list)
    data: str = ""
    metric: str = ""
    pytorch: float = float("nan")
    exported: float = float("nan")
    pytorch_ms: float = float("nan")
    exported_ms: float = float("nan")

    @property
    def map_share(self) -> float:
        """The mean of the map_shares."""
        return float(np.mean(self.map_shares))

    @property
    def failure(self) -> str:
        """Why the file is not accurate enough, in one sentence; empty if it is."""
        if self.map_shares and not self.map_share >= MIN_MAP_SHARE:
            return f"the semantic maps agree in {self.map_share:.1%} of the pixels, less than {MIN_MAP_SHARE:.0%}"
        if self.data:
            if not self.pytorch > 0:
                what = f"PyTorch's {self.metric} is {self.pytorch:.1f}" if self.images else "it has no readable image"
                return f"nothing was compared on {self.data}: {what}"
            if not self.exported >= self.pytorch - MAX_DROP:
                return (
                    f"the {self.metric} on {self.data} is {self.exported:.2f}, PyTorch's {self.pytorch:.2f}, and may "
                    f"fall by {MAX_DROP}; calibrate on more images, or on images that are more like those"
                )
            return ""
        if not self.detections:
            return (
                f"nothing was compared: in {self.images} images PyTorch detects nothing with a score of {SCORE}; give "
                "images with objects, or trained weights"
            )
        for count, what in ((self.lost, "are lost"), (self.added, "are added")):
            if count > MAX_LOST * self.detections:
                return f"of {self.detections} detections {count} {what}, more than {MAX_LOST:.0%}"
        if not self.mean_iou >= MIN_MEAN_IOU:
            return f"the mean IoU with PyTorch's is {self.mean_iou:.3f}, less than {MIN_MEAN_IOU}"
        return ""

    def figures(self) -> dict:
        """The result as plain data, for the file's metadata."""
        names = ("images", "detections", "lost", "added", "mean_iou")
        if self.data:
            names = ("images", "data", "metric", "pytorch", "exported")
        if self.map_shares:
            names += ("map_share",)
        return {name: getattr(self, name) for name in names}

    @property
    def summary(self) -> str:
        """The figures in words."""
        if self.data:
            values = f"{self.exported:.2f}, PyTorch's {self.pytorch:.2f}"
            return f"{self.metric} on {self.images} images of {self.data}: {values}"
        return (
            f"{self.images} images, {self.detections} detections compared: {self.lost} lost, {self.added} added, mean "
            f"IoU {self.mean_iou:.3f}"
        )


def _ious(a: Instances, b: Instances) -> np.ndarray:
    """(D of a, D of b), 0 where the classes differ."""
    if not len(a) or not len(b):
        return np.zeros((len(a), len(b)))
    if a.has("pred_masks"):
        ious = mask_util.iou(a.pred_masks.codes, b.pred_masks.codes, [0] * len(b))
    else:
        ious = pairwise_iou(a.pred_boxes, b.pred_boxes).numpy()
    return np.where((a.pred_classes[:, None] == b.pred_classes).numpy(), ious, 0.0)


def partners(a: Instances, b: Instances) -> list[float]:
    """The IoU of every instance of ``a`` with a score of at least SCORE with its partner in ``b``; 0: it has none."""
    a, b = a[a.scores >= SCORE], b[b.scores >= SCORE - SCORE_SLACK]
    ious = _ious(a, b)
    ious = np.where(ious >= PARTNER_IOU, ious, 0.0)
    found = np.zeros(len(a))
    first, second = linear_sum_assignment(ious, maximize=True)
    found[first] = ious[first, second]
    return found.tolist()


def _results(predictor, exported, record: dict, result: Accuracy) -> tuple[Instances, Instances]:
    """PyTorch's and the file's instances of a record, with masks as run lengths; maps are compared here."""
    if "tiles" in record:
        result.images += 1
        tiled = (in_tiles(x).predict([record], masks="run_lengths")[0] for x in (predictor, exported))
        return tuple(tiled)
    (expected,) = reference(predictor, [record], exported.canvas(record["image"]), masks="run_lengths")
    (found,) = exported.outputs([record], masks="run_lengths")
    if "sem_seg" in expected:
        result.map_shares.append(float((expected["sem_seg"] == found["sem_seg"]).float().mean()))
    result.images += 1
    return expected["instances"], found["instances"]


def compare_on_images(predictor: Predictor, exported: ExportedPredictor, files: Sequence[str]) -> Accuracy:
    """Run both on image files and compare the detections."""
    result, ious = Accuracy(), []
    for file in tqdm(files, desc="comparing", unit="image", leave=False, disable=not is_terminal()):
        expected, found = _results(predictor, exported, seen_by_network(exported, file, result.images), result)
        pairs = partners(expected, found)
        ious += [x for x in pairs if x]
        result.detections += len(pairs)
        result.lost += pairs.count(0.0)
        result.added += partners(found, expected).count(0.0)
    result.mean_iou = float(np.mean(ious)) if ious else 0.0
    result.pytorch_ms, result.exported_ms = time_both(predictor, exported, files[-1])
    return result


def _evaluated(evaluator) -> dict:
    """An evaluation's results, without the tables that it prints and logs."""
    log = logging.getLogger("detectron2.evaluation")
    with contextlib.redirect_stdout(io.StringIO()):
        level = log.level
        log.setLevel(logging.WARNING)
        try:
            return evaluator.evaluate()
        finally:
            log.setLevel(level)


def _metric(results: dict) -> tuple[str, float]:
    """The name and the value of the metric that sums up an evaluation: AP of masks, else of boxes, else recall."""
    for task in ("segm", "bbox"):
        if task in results:
            return f"{task} AP", results[task]["AP"]
    task, metrics = next(iter(results.items()))
    name = max((x for x in metrics if re.fullmatch(r"AR@\d+", x)), key=lambda x: int(x[3:]))
    return f"{task} {name}", metrics[name]


def check_classes(predictor: Predictor, name: str) -> None:
    """
    Raises:
        ConfigError: the classes of a data set are not the model's.
        DatasetError: the data set is unusable.
    """
    names = class_names(name)
    if predictor.class_names and not method_of(predictor.cfg).class_agnostic(predictor.cfg):
        difference = class_difference(predictor.class_names, names, "the model", name)
        if difference:
            raise ConfigError(f"the data set {name} does not have the classes of the model: {difference}.")


def compare_on_data(predictor: Predictor, exported: ExportedPredictor, name: str) -> Accuracy:
    """
    Run both on a labelled data set and compare their AP.

    Raises:
        DatasetError: it is unusable.
    """

    def read(sample):
        return {**sample, **in_tiles(exported).preprocess(sample["file_name"])}

    cfg = predictor.cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0  # the reader cannot be sent to a started process
    loader = build_test_loader(cfg, name, read)
    loader.leave_out = leaves_out(name)
    result = Accuracy(data=name)
    with tempfile.TemporaryDirectory() as folder:
        evaluators = [build_evaluator(cfg, name, folder, instances_only=True) for _ in range(2)]
        for evaluator in evaluators:
            evaluator.reset()
        record = None
        for (record,) in tqdm(loader, desc=name, unit="image", leave=False, disable=not is_terminal()):
            for evaluator, instances in zip(evaluators, _results(predictor, exported, record, result)):
                evaluator.process([record], [{"instances": instances}])
        if not result.images:
            return result
        results = [_evaluated(evaluator) for evaluator in evaluators]
    (result.metric, result.pytorch), (_, result.exported) = map(_metric, results)
    result.pytorch_ms, result.exported_ms = time_both(predictor, exported, record["file_name"])
    return result
