"""Runs an evaluation, with a progress bar and explanations of missing numbers."""

import functools
import json
import logging
import math
import re
from collections.abc import Callable, Sequence

from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators, inference_context, inference_on_dataset
from detectron2.utils import comm
from tqdm import tqdm

from ..console import is_terminal
from ..data.loader import TestLoader
from ..files import write_bytes
from ..inference.tiles import TiledModel
from ..modeling.meta_arch import detect
from .evaluators import leaves_out

__all__ = ["detector", "evaluate", "write_results"]

logger = logging.getLogger(__name__)

_SIZES = {
    "s": "small objects (under 32 x 32 pixels)",
    "m": "medium objects (32 x 32 to 96 x 96 pixels)",
    "l": "large objects (over 96 x 96 pixels)",
}
_SIZE_METRIC = re.compile(r"A[PR]([sml])(@\d+)?")  # APs, ARs@100
_CLASS_METRIC = re.compile(r"(?:A[PR](?:@\d+)?|IoU)-(.+)")  # AP-person, AR@100-person, IoU-sky


class _DetectionCounter(DatasetEvaluator):
    """Warns if the model detects nothing in a whole data set."""

    def __init__(self, dataset_name: str):
        self._name = dataset_name

    def reset(self):
        self._images, self._detections = 0, 0

    def process(self, inputs, outputs):
        for output in outputs:
            if "instances" in output:
                self._images += 1
                self._detections += len(output["instances"])

    def evaluate(self):
        counts = comm.gather((self._images, self._detections))
        if not comm.is_main_process():
            return
        images, detections = (sum(column) for column in zip(*counts))
        if images and not detections:
            logger.warning(
                "Nothing was detected in the %d images of %s: the model is not trained enough, its weights are wrong "
                "(see the log of loading), its score threshold is too high, or the images differ from the training "
                "images in channel order (INPUT.FORMAT), scale or normalisation.",
                images,
                self._name,
            )
        elif images:
            logger.info("%d detections in %d images of %s.", detections, images, self._name)


class _WithProgress:
    """A data loader with a progress bar, only on the main process and on a terminal."""

    def __init__(self, loader, title: str):
        self._loader, self._title = loader, title

    def __len__(self):
        return len(self._loader)

    def __iter__(self):
        hidden = not (comm.is_main_process() and is_terminal())
        return iter(tqdm(self._loader, desc=self._title, unit="batch", leave=False, disable=hidden))


def _explain_missing(task: str, metrics: dict, dataset_name: str) -> None:
    """Log in one line why metrics of a task are nan."""
    absent = [name for name, value in metrics.items() if isinstance(value, float) and math.isnan(value)]
    if not absent:
        return
    if math.isnan(metrics.get("AP", 0.0)):
        logger.info("%s: AP is nan because there are no predictions or annotations in %s.", task, dataset_name)
        return
    sizes, classes = (
        [(m.string, m[1]) for m in map(kind.fullmatch, absent) if m] for kind in (_SIZE_METRIC, _CLASS_METRIC)
    )
    reasons = [f"{name}: no {_SIZES[size]}" for name, size in sizes]
    classes = [name for _, name in classes]
    if classes:
        shown = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
        reasons.append(f"{len(classes)} classes without annotations ({shown})")
    logger.info("%s: nan where %s has nothing to measure: %s.", task, dataset_name, "; ".join(reasons))


def _reads_run_lengths(evaluator: DatasetEvaluator) -> bool:
    parts = evaluator._evaluators if isinstance(evaluator, DatasetEvaluators) else [evaluator]
    return all(getattr(part, "reads_run_lengths", False) for part in parts)


def detector(network, masks: str) -> Callable[[Sequence[dict]], list[dict]]:
    """What runs a model for test, also one with tiles, on a batch; ``masks`` as in `InstanceSegmenter.detect`."""
    run = network.detect if isinstance(network, TiledModel) else functools.partial(detect, network)
    return functools.partial(run, masks=masks)


def evaluate(model, loader, evaluator: DatasetEvaluator, dataset_name: str) -> dict:
    """
    Run a model over a data set with Detectron2's ``inference_on_dataset``, with a progress bar on a terminal.
    If the evaluator allows it, unreadable images are excluded with a warning.

    Returns:
        {task: {metric: value}}; empty on processes other than the main one.
    """
    if isinstance(loader, TestLoader):
        loader.leave_out = leaves_out(dataset_name)
    network = getattr(model, "module", model)
    masks = "run_lengths" if _reads_run_lengths(evaluator) else "full"
    evaluator = DatasetEvaluators([_DetectionCounter(dataset_name), evaluator])
    with inference_context(network):
        results = inference_on_dataset(detector(network, masks), _WithProgress(loader, dataset_name), evaluator)
    for task, metrics in results.items():
        if isinstance(metrics, dict):
            _explain_missing(task, metrics, dataset_name)
    return results


def _plain(value):
    """Nested results for JSON: floats, or null for nan and infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return float(value) if math.isfinite(value) else None


def write_results(path: str, results: dict) -> None:
    """Write nested results as JSON; nan becomes null."""
    write_bytes(path, json.dumps(_plain(results), indent=1).encode())
