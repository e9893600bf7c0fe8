"""Rules for ISTR's recipes, see `methods.AutoRecipe`."""

import math
from collections.abc import Collection

from detectron2.config import CfgNode

from ...data.fingerprint import Fingerprint
from ..recipe_rules import cheaper_steps, fine_map_reason

__all__ = ["recipe_rules"]

MOST = {True: 200, False: 900}  # queries of small and of other recipes
MANY = 100
MAPS = {  # backbones of the small recipes -> the key of the maps under their pyramid
    "build_resnet_fpn_backbone": "MODEL.RESNETS.OUT_FEATURES",
    "build_fcos_timm_fpn_backbone": "MODEL.TIMM.OUT_FEATURES",
}


def recipe_rules(cfg: CfgNode, data: Fingerprint, small: bool, unit: int, given: Collection) -> dict:
    """
    Queries by the number of objects: a step's time grows with them, so that the fullest images may have more. A finer
    map for small objects.
    """
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
    maps, reason = MAPS.get(cfg.MODEL.BACKBONE.NAME), fine_map_reason(cfg, data)
    if small and maps and reason:
        names = ["res2", "res3", "res4", "res5"]
        decisions |= {
            maps: (names, reason),
            "MODEL.FPN.IN_FEATURES": (names, "the same"),
            "MODEL.ROI_HEADS.IN_FEATURES": (["p2", "p3", "p4", "p5"], "the same"),
        }
    if queries > MANY and small:
        decisions |= cheaper_steps(cfg, unit, given, f"{queries} queries are expensive and take many steps to learn")
    return decisions
