"""
Recall of class-agnostic segment proposals. D proposals in an image, G objects, T IoU thresholds, L limits on the
number of proposals.
"""

import contextlib
import io
import itertools
import logging
from pathlib import Path
from typing import Optional

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from matplotlib.figure import Figure
from pycocotools.coco import COCO
from tabulate import tabulate

from ..errors import DatasetError
from ..files import atomic_write
from .coco import encoded_masks

__all__ = ["ProposalRecallEvaluator", "match_greedily"]

logger = logging.getLogger(__name__)

THRESHOLDS = np.linspace(0.5, 0.95, 10)
# Ranges of areas in pixels, inclusive, as in COCO.
AREAS = {"": (0, 1e10), "s": (0, 32**2), "m": (32**2, 96**2), "l": (96**2, 1e10)}
CLASS_LIMIT = 100  # proposals counted for the recall per class
UNMATCHED = np.iinfo(np.int64).max


def match_greedily(ious: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """
    COCO's matching: each proposal, best first, takes the unmatched object with the largest IoU if that reaches the
    threshold; among equal IoUs, the last object.

    Args:
        ious: (D, G); thresholds: (T,).

    Returns:
        (T, G) int64, the index of the proposal matched to each object, or UNMATCHED.
    """
    num_objects = ious.shape[1]
    ranks = np.full((len(thresholds), num_objects), UNMATCHED)
    thresholds = np.minimum(thresholds, 1 - 1e-10)
    rows = np.arange(len(thresholds))
    for proposal in np.flatnonzero(ious.max(axis=1, initial=0) >= thresholds.min()):
        free = np.where(ranks == UNMATCHED, ious[proposal], -1)
        best = num_objects - 1 - free[:, ::-1].argmax(axis=1)
        takes = free[rows, best] >= thresholds
        ranks[rows[takes], best[takes]] = proposal
    return ranks


class ProposalRecallEvaluator(DatasetEvaluator):
    """
    Average recall (AR) of masks over IoU 0.5:0.05:0.95 for the best 10, 100 and 1000 proposals per image, regardless of
    their classes: as by COCOeval with ``useCats = 0``, over the processed images. Crowds are excluded.

    Images are matched as they come; only counts are kept in memory.
    """

    reads_run_lengths = True

    def __init__(self, dataset_name: str, output_dir: Optional[str] = None, *, limits=(10, 100, 1000)):
        """
        Args:
            dataset_name: a registered COCO-format set with masks.
            output_dir: folder for proposal_recall.png, a plot of recall against IoU; None: no plot.
            limits: numbers of proposals, ascending.
        """
        metadata = MetadataCatalog.get(dataset_name)
        self._name = dataset_name
        self._output_dir = output_dir
        self._limits = np.asarray(limits)
        with contextlib.redirect_stdout(io.StringIO()):
            self._coco = COCO(metadata.json_file)
        categories = sorted(self._coco.getCatIds())
        self._class_of = {category: number for number, category in enumerate(categories)}
        self._class_names = [category["name"] for category in self._coco.loadCats(categories)]

    def reset(self):
        shape = (len(THRESHOLDS), len(self._limits))
        self._hits = np.zeros((len(AREAS), *shape), np.int64)
        self._objects = np.zeros(len(AREAS), np.int64)
        self._class_hits = np.zeros((len(self._class_of), *shape), np.int64)
        self._class_objects = np.zeros(len(self._class_of), np.int64)

    def process(self, inputs, outputs):
        """
        Args:
            inputs: dicts with image_id.
            outputs: dicts with "instances" that have scores (D,) and pred_masks, (D, H, W) bool or run lengths.

        Raises:
            ValueError: the instances have no masks.
            DatasetError: the objects of the data set have no masks.
        """
        for sample, output in zip(inputs, outputs):
            annotations = self._coco.imgToAnns[sample["image_id"]]
            annotations = [x for x in annotations if not x.get("iscrowd", 0)]
            if not annotations:
                continue
            annotations.sort(key=lambda x: x["category_id"])  # COCOeval's order
            if not all("segmentation" in x for x in annotations):
                raise DatasetError(
                    f"{self._name} has objects without masks, so the recall of masks cannot be measured."
                )
            proposals = self._encode(output["instances"])
            objects = [self._coco.annToRLE(x) for x in annotations]
            ious = np.zeros((0, len(objects)))
            if proposals:
                ious = mask_util.iou(proposals, objects, [0] * len(objects))
            self._count(
                ious,
                np.array([x["area"] for x in annotations]),
                np.array([self._class_of[x["category_id"]] for x in annotations]),
            )

    def _encode(self, instances) -> list:
        """The best masks as run lengths, best first."""
        if not instances.has("pred_masks"):
            raise ValueError("the recall of segment proposals needs a model that predicts masks (pred_masks).")
        order = np.argsort(-instances.scores.cpu().numpy(), kind="stable")[: self._limits[-1]]
        return encoded_masks(instances[order.tolist()]).codes

    def _count(self, ious, areas, classes):
        for number, (low, high) in enumerate(AREAS.values()):
            inside = (areas >= low) & (areas <= high)
            ranks = match_greedily(ious[:, inside], THRESHOLDS)
            found = ranks[:, :, None] < self._limits  # (T, G, L)
            self._hits[number] += found.sum(axis=1)
            self._objects[number] += inside.sum()
            if number == 0:  # all objects
                np.add.at(self._class_hits, classes, found.swapaxes(0, 1))
                np.add.at(self._class_objects, classes, 1)

    def evaluate(self):
        """
        Returns:
            {"proposals": {metric: percent}}: AR@L for each limit L, ARs@L, ARm@L and ARl@L (small, medium and large
            objects), and AR@100-<class> if there are several classes; nan if there are no such objects. None on
            processes other than the main one.
        """
        gathered = comm.gather((self._hits, self._objects, self._class_hits, self._class_objects))
        if not comm.is_main_process():
            return None
        hits, objects, class_hits, class_objects = (sum(parts) for parts in zip(*gathered))
        with np.errstate(invalid="ignore"):
            recall = 100 * hits / objects[:, None, None]  # (areas, T, L)
            class_recall = 100 * class_hits / class_objects[:, None, None]
        results = {
            f"AR{suffix}@{limit}": float(recall[area, :, column].mean())
            for column, limit in enumerate(self._limits)
            for area, suffix in enumerate(AREAS)
        }
        columns = np.flatnonzero(self._limits == CLASS_LIMIT)
        of_classes = {}
        if len(self._class_names) > 1 and len(columns):
            means = class_recall[:, :, columns[0]].mean(axis=1)
            of_classes = dict(zip(self._class_names, map(float, means)))
        self._log(recall, of_classes)
        if self._output_dir is not None:
            self._draw(recall[0], Path(self._output_dir) / "proposal_recall.png")
        return {"proposals": {**results, **{f"AR@{CLASS_LIMIT}-{name}": v for name, v in of_classes.items()}}}

    def _log(self, recall, of_classes: dict):
        rows = [
            [limit, *recall[:, :, column].mean(axis=1), recall[0, 0, column], recall[0, 5, column]]
            for column, limit in enumerate(self._limits)
        ]
        headers = ["proposals", "AR", "small", "medium", "large", "recall at 0.5", "at 0.75"]
        table = tabulate(rows, headers, floatfmt=".1f", missingval="nan", tablefmt="pipe")
        logger.info("Recall of segment proposals on %s, in percent:\n%s", self._name, table)
        if of_classes:
            cells = [x for pair in of_classes.items() for x in pair]
            rows = itertools.zip_longest(*[iter(cells)] * 6)
            table = tabulate(rows, ["class", f"AR@{CLASS_LIMIT}"] * 3, floatfmt=".1f", tablefmt="pipe")
            logger.info("Recall of each class:\n%s", table)

    def _draw(self, recall, path: Path):
        """Plot the recall (T, L) against IoU, one line per limit."""
        figure = Figure(figsize=(5, 4), dpi=120)
        axes = figure.add_subplot(xlabel="IoU", ylabel="recall, %", ylim=(0, 100), title=self._name)
        for limit, values in zip(self._limits, recall.T):
            axes.plot(THRESHOLDS, values, marker=".", label=f"{limit} proposals (AR {values.mean():.1f})")
        axes.grid(alpha=0.3)
        axes.legend()
        figure.tight_layout()
        with atomic_write(path) as temporary:
            figure.savefig(temporary, format="png")
