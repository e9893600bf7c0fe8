"""COCOeval's numbers by faster-coco-eval, where it is installed and gives the same as pycocotools."""

import functools
import importlib.util
import logging
import math
from collections.abc import Iterable
from numbers import Real

from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools.coco import COCO

__all__ = ["FastMatching", "can_match"]

logger = logging.getLogger(__name__)


@functools.lru_cache(maxsize=1)
def _package():
    """faster_coco_eval, or None; the log says if it is there and does not load."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        return None
    try:
        import faster_coco_eval
    except Exception as error:  # whatever it is, the evaluation goes on
        logger.warning("pycocotools computes the metrics, since faster-coco-eval does not load: %s", error)
        return None
    return faster_coco_eval


def can_match(truth: COCO, results: Iterable[dict]) -> bool:
    """
    True if faster-coco-eval gives the numbers of pycocotools: it is installed, ids are integers in [0, 2^53), sizes of
    images integers and areas numbers, and scores and boxes are finite.

    Args:
        truth: the annotation file.
        results: detections in COCO's results format.
    """
    if _package() is None:
        return False
    ids, sizes = [*truth.imgs, *truth.cats], []
    for image in truth.imgs.values():
        sizes += [image.get("height"), image.get("width")]
    for entry in truth.anns.values():
        ids += [entry["id"], entry["image_id"], entry["category_id"]]
    return (
        all(isinstance(number, int) and 0 <= number < 2**53 for number in ids)
        and all(isinstance(number, int) for number in sizes)
        and all(isinstance(entry.get("area"), Real) for entry in truth.anns.values())
        and all(math.isfinite(number) for x in results for number in (x["score"], *x.get("bbox", ())))
    )


class FastMatching(COCOevalMaxDets):
    """COCOeval for which faster-coco-eval matches detections and objects, see `can_match`."""

    def evaluate(self):
        """
        Match, and compute ``eval``: precision (thresholds, recalls, classes, areas, limits), recall (thresholds,
        classes, areas, limits) and scores as precision, in 0-1.
        """
        fast = _package().COCOeval_faster(self.cocoGt, self.cocoDt, self.params.iouType, print_function=logger.debug)
        for name in ("imgIds", "catIds", "iouThrs", "recThrs", "maxDets", "areaRng", "areaRngLbl", "useCats"):
            setattr(fast.params, name, getattr(self.params, name))
        fast.evaluate()
        fast.accumulate()
        self.params.maxDets = fast.params.maxDets  # sorted
        self.eval = {name: fast.eval[name] for name in ("precision", "recall", "scores")}

    def accumulate(self, p=None):
        """Nothing: `evaluate` did it."""
