"""
Panoptic quality (Kirillov et al., arXiv 1801.00868, equations 1 and 2) on COCO-format panoptic data, used if
panopticapi is not installed. H, W: height and width in pixels; id 0 is void.
"""

import json
import logging
from collections import defaultdict
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image
from tabulate import tabulate

__all__ = ["PanopticQualityEvaluator", "count_matches"]

logger = logging.getLogger(__name__)

TP, FP, FN, IOU = range(4)  # columns of the counts


def count_matches(truth: np.ndarray, true_segments: list, found: np.ndarray, found_segments: list) -> dict:
    """
    Match the segments of an image: two match if they have the same category and an IoU over 0.5, which makes matches
    unique (section 4.1).

    Void pixels of the ground truth do not count towards a union. An unmatched prediction is not a false positive if
    more than half of it lies on void or on crowds of its category; crowds are neither matched nor missed.

    Args:
        truth, found: (H, W) segment ids.
        true_segments, found_segments: dicts with id, category_id and, for the ground truth, iscrowd.

    Returns:
        {category_id: float array of true positives, false positives, false negatives and the sum of IoUs}.
    """
    true_ids, true_index = np.unique(truth, return_inverse=True)
    found_ids, found_index = np.unique(found, return_inverse=True)
    shape = (len(true_ids), len(found_ids))
    overlaps = np.bincount(true_index.ravel() * shape[1] + found_index.ravel(), minlength=shape[0] * shape[1])
    overlaps = overlaps.reshape(shape)
    rows, columns = ({identifier: i for i, identifier in enumerate(ids.tolist())} for ids in (true_ids, found_ids))
    # Segments without pixels are ignored.
    true_segments = [(rows[x["id"]], x) for x in true_segments if x["id"] in rows]
    found_segments = [(columns[x["id"]], x) for x in found_segments if x["id"] in columns]
    void = overlaps[rows[0]] if 0 in rows else np.zeros(shape[1], int)
    true_areas, found_areas = overlaps.sum(1), overlaps.sum(0) - void

    counts = defaultdict(lambda: np.zeros(4))
    matched, crowds = set(), defaultdict(list)
    for row, segment in true_segments:
        category = segment["category_id"]
        if segment.get("iscrowd", 0):
            crowds[category].append(row)
            continue
        for column, other in found_segments:
            common = overlaps[row, column]
            iou = common / (true_areas[row] + found_areas[column] - common)
            if other["category_id"] == category and iou > 0.5:
                matched.add(column)
                counts[category] += (1, 0, 0, iou)
                break
        else:
            counts[category][FN] += 1
    for column, segment in found_segments:
        category = segment["category_id"]
        ignored = void[column] + overlaps[crowds[category], column].sum()
        if column not in matched and ignored <= 0.5 * overlaps[:, column].sum():
            counts[category][FP] += 1
    return counts


def _mean_quality(counts: list) -> dict:
    """PQ, SQ and RQ in percent, averaged over the categories that occur; nan if there are none."""
    counts = np.array([x for x in counts if x[:IOU].any()]).reshape(-1, 4)
    if not len(counts):
        return dict.fromkeys(("PQ", "SQ", "RQ"), float("nan"))
    tp, fp, fn, iou = counts.T
    weight = tp + fp / 2 + fn / 2
    values = iou / weight, iou / np.maximum(tp, 1), tp / weight
    return {name: float(100 * value.mean()) for name, value in zip(("PQ", "SQ", "RQ"), values)}


class PanopticQualityEvaluator(DatasetEvaluator):
    """The results of Detectron2's ``COCOPanopticEvaluator`` without panopticapi; keeps only counts in memory."""

    def __init__(self, dataset_name: str):
        """
        Args:
            dataset_name: a registered set with the metadata panoptic_json, panoptic_root and the category ids of
                things and stuff.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._name = dataset_name
        self._root = Path(metadata.panoptic_root)
        content = json.loads(Path(metadata.panoptic_json).read_bytes())
        self._truth = {annotation["image_id"]: annotation for annotation in content["annotations"]}
        self._things = {category["id"]: bool(category["isthing"]) for category in content["categories"]}
        self._categories = {
            isthing: {index: identifier for identifier, index in ids.items()}
            for isthing, ids in (
                (True, metadata.thing_dataset_id_to_contiguous_id),
                (False, metadata.stuff_dataset_id_to_contiguous_id),
            )
        }

    def reset(self):
        self._counts = {category: np.zeros(4) for category in self._things}

    def process(self, inputs, outputs):
        """
        Args:
            inputs: dicts with image_id.
            outputs: dicts with "panoptic_seg": segment ids (H, W), 0 where there is none, and a list of dicts with id,
                category_id (contiguous) and isthing.
        """
        for sample, output in zip(inputs, outputs):
            annotation = self._truth[sample["image_id"]]
            colours = np.asarray(Image.open(self._root / annotation["file_name"]).convert("RGB"), np.int64)
            found, segments = output["panoptic_seg"]
            segments = [
                {"id": x["id"], "category_id": self._categories[bool(x["isthing"])][x["category_id"]]} for x in segments
            ]
            truth = colours @ (1, 256, 256**2)
            counts = count_matches(truth, annotation["segments_info"], found.cpu().numpy(), segments)
            for category, count in counts.items():
                self._counts[category] += count

    def evaluate(self):
        """
        Returns:
            {"panoptic_seg": {metric: percent}}: PQ, SQ and RQ of all categories, things (_th) and stuff (_st). None
            on processes other than the main one.
        """
        gathered = comm.gather(self._counts)
        if not comm.is_main_process():
            return None
        counts = {category: sum(x[category] for x in gathered) for category in self._things}
        groups = {
            "": list(counts.values()),
            "_th": [count for category, count in counts.items() if self._things[category]],
            "_st": [count for category, count in counts.items() if not self._things[category]],
        }
        quality = {suffix: _mean_quality(group) for suffix, group in groups.items()}
        rows = [
            [name, *quality[suffix].values()] for name, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
        ]
        table = tabulate(rows, ["", "PQ", "SQ", "RQ"], floatfmt=".1f", missingval="nan", tablefmt="pipe")
        logger.info("Panoptic quality on %s, in percent:\n%s", self._name, table)
        return {"panoptic_seg": {f"{k}{suffix}": v for suffix, values in quality.items() for k, v in values.items()}}
