"""Rules for ISTR's recipes, see `methods.AutoRecipe`."""

import math

from detectron2.config import CfgNode

from ...data.fingerprint import Fingerprint
from ..recipe_rules import cheaper_steps

__all__ = ["recipe_rules"]

MOST = {True: 200, False: 900}  # queries of small and of other recipes
MANY = 100


def recipe_rules(cfg: CfgNode, data: Fingerprint, small: bool, unit: int = 1) -> dict:
    """Queries by the number of objects: a step's time grows with them, so that the fullest images may have more."""
    wanted, most = 50 * math.ceil(1.5 * data.q99_objects / 50), MOST[small]
    queries = min(max(wanted, cfg.MODEL.ISTR.NUM_PROPOSALS), most)
    limit = f", at most {most} queries" if wanted > most else ""
    reason = f"99 % of the images have at most {data.q99_objects} objects{limit}"
    decisions = {
        "MODEL.ISTR.NUM_PROPOSALS": (queries, reason),
        "TEST.DETECTIONS_PER_IMAGE": (
            min(cfg.TEST.DETECTIONS_PER_IMAGE, max(queries, 100)),
            "as many as queries, or 100",
        ),
    }
    if queries > MANY and small:
        decisions |= cheaper_steps(cfg, unit, f"{queries} queries are expensive and take many steps to learn")
    return decisions
