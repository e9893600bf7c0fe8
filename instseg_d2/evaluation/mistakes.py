"""The mistakes of a model in an image: false detections, missed objects, wrong classes. D detections, M objects."""

from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BoxMode, Instances

from ..data.segmentations import to_rle
from .coco import encoded_masks

__all__ = ["FALSE", "MISSED", "WRONG_CLASS", "Mistake", "Objects", "find_mistakes", "objects_of"]

FALSE, MISSED, WRONG_CLASS = "false", "missed", "wrong class"


class Objects(NamedTuple):
    """
    What is in an image.

    Attributes:
        labels: class of each object.
        regions: COCO's compressed run lengths {"size", "counts"}, or boxes [x, y, width, height]; detections and
            annotations must have the same kind.
        scores: of detections.
        crowds: True for annotations of crowds; empty: there are none.
    """

    labels: Sequence[int]
    regions: Sequence
    scores: Sequence[float] = ()
    crowds: Sequence[bool] = ()


class Mistake(NamedTuple):
    """
    One mistake.

    Attributes:
        kind: "false", "missed" or "wrong class".
        cost: 0 to 1, how sure the model was: the score of a false detection or a wrong class. For a missed object,
            1 minus the best score under the threshold with which it was found; 1 if it was not found at all.
        detection, truth: index of the detection and of the annotation, or None.
    """

    kind: str
    cost: float
    detection: Optional[int]
    truth: Optional[int]


def objects_of(instances: Instances, record: dict, labels: Optional[Sequence[int]] = None) -> tuple[Objects, Objects]:
    """
    The detections of an image and its annotations, with masks if both have them, else with boxes.

    Args:
        instances: on the CPU, with scores and pred_classes; pred_masks are a tensor or `RunLengthMasks`.
        record: in Detectron2's standard format.
        labels: class in the data set for each class of the model; None: they are the same.
    """
    annotations, size = record.get("annotations", []), (record["height"], record["width"])
    classes = instances.pred_classes.tolist()
    classes = classes if labels is None else [labels[label] for label in classes]
    if instances.has("pred_masks") and all(len(a.get("segmentation") or ()) for a in annotations):
        found = encoded_masks(instances).codes
        true = [to_rle(a["segmentation"], *size) for a in annotations]
    else:
        boxes = instances.pred_boxes.tensor.numpy()
        found = list(np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1))
        true = [BoxMode.convert(list(a["bbox"]), a["bbox_mode"], BoxMode.XYWH_ABS) for a in annotations]
    crowds = [bool(a.get("iscrowd", 0)) for a in annotations]
    truth = Objects([a["category_id"] for a in annotations], true, crowds=crowds)
    return Objects(classes, found, instances.scores.tolist()), truth


def _overlaps(detections: Objects, truth: Objects) -> np.ndarray:
    """(D, M) IoU; for crowds the share of the detection that they cover."""
    if not len(detections.labels) or not len(truth.labels):
        return np.zeros((len(detections.labels), len(truth.labels)))
    crowds = [int(crowd) for crowd in truth.crowds] or [0] * len(truth.labels)
    return np.asarray(mask_util.iou(_regions(detections), _regions(truth), crowds))


def _regions(objects: Objects):
    """The form that pycocotools wants."""
    regions = list(objects.regions)
    return regions if isinstance(regions[0], dict) else np.array(regions, dtype=np.float64)


def _assign(order: Sequence[int], overlaps: np.ndarray, allowed: np.ndarray, iou: float) -> dict[int, int]:
    """Give each detection, in this order, the free allowed object that it overlaps most: {detection: object}."""
    free, pairs = np.ones(overlaps.shape[1], dtype=bool), {}
    for detection in order:
        candidates = np.where(allowed[detection] & free, overlaps[detection], -1.0)
        if len(candidates) and candidates.max() >= iou:
            pairs[detection] = int(candidates.argmax())
            free[pairs[detection]] = False
    return pairs


def find_mistakes(detections: Objects, truth: Objects, score_threshold: float = 0.5, iou: float = 0.5) -> list[Mistake]:
    """
    Match the detections of an image to its annotations and list what does not match, the highest cost first.

    As in COCO's evaluation, each detection in order of its score takes the free object of its class with the largest
    IoU, and detections that lie on a crowd of their class are ignored. Then each detection left over may take an object
    of another class that no detection has found: a wrong class. The rest are false detections and missed objects. A
    second detection of an object is false.

    Args:
        score_threshold: detections that score lower find nothing; they only make missed objects cheaper.
        iou: lowest overlap of a match; for crowds, the lowest share of the detection.
    """
    scores, labels, truths = (np.asarray(x) for x in (detections.scores, detections.labels, truth.labels))
    overlaps = _overlaps(detections, truth)
    same = labels[:, None] == truths[None]
    crowds = np.asarray(truth.crowds, dtype=bool) if len(truth.crowds) else np.zeros(len(truths), dtype=bool)
    order = np.argsort(-scores, kind="stable").tolist()
    pairs = _assign(order, overlaps, same & ~crowds, iou)
    found = {other for detection, other in pairs.items() if scores[detection] >= score_threshold}
    faint = {other: float(scores[detection]) for detection, other in pairs.items() if other not in found}
    on_crowd = (overlaps * (same & crowds)).max(axis=1, initial=0) >= iou
    rest = [d for d in order if scores[d] >= score_threshold and d not in pairs and not on_crowd[d]]
    unfound = ~crowds & ~np.isin(np.arange(len(truths)), list(found))
    confused = _assign(rest, overlaps, ~same & unfound, iou)
    mistakes = [Mistake(WRONG_CLASS if d in confused else FALSE, float(scores[d]), d, confused.get(d)) for d in rest]
    missed = set(np.flatnonzero(unfound).tolist()) - set(confused.values())
    mistakes += [Mistake(MISSED, 1 - faint.get(m, 0.0), None, m) for m in sorted(missed)]
    return sorted(mistakes, key=lambda mistake: -mistake.cost)
