"""Rules for recipes of Detectron2's GeneralizedRCNN, see `methods.AutoRecipe`."""

import math
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY

from ..config import get_value
from ..data.fingerprint import Fingerprint
from .proposal_generator.recipe import fcos_rules
from .recipe_rules import in_network

__all__ = ["recipe_rules"]

SMALLEST, LARGEST = 8, 32  # side in pixels of the smallest anchor
SPARE = 3  # proposals for each object of the fullest image


def recipe_rules(cfg: CfgNode, data: Fingerprint, small: bool, unit: int, given: Mapping) -> dict:
    """
    Anchors that begin at the size of small objects, where each level has one of its own, or the levels of FCOS; enough
    proposals for the fullest image. Without proposals, the rules of the ROI heads, their ``recipe_rules``.
    """
    proposals, wanted = cfg.MODEL.PROPOSAL_GENERATOR.NAME, SPARE * data.max_objects
    reason = f"{SPARE} for each of up to {data.max_objects} objects"
    if proposals == "FCOS":
        decisions = fcos_rules(cfg, data, cfg.MODEL.ROI_HEADS.IN_FEATURES)
        for part in ("TRAIN", "TEST"):
            key = f"MODEL.FCOS.POST_NMS_TOPK_{part}"
            decisions[key] = max(get_value(cfg, key), wanted), f"at least {reason}"
        return decisions
    if proposals != "RPN":
        name = cfg.MODEL.ROI_HEADS.NAME
        own = getattr(ROI_HEADS_REGISTRY.get(name), "recipe_rules", None) if name in ROI_HEADS_REGISTRY else None
        return own(cfg, data) if own else {}
    decisions = {}
    for part in ("TRAIN", "TEST"):
        for stage in ("PRE", "POST"):
            key = f"MODEL.RPN.{stage}_NMS_TOPK_{part}"
            if wanted > get_value(cfg, key):
                decisions[key] = wanted, reason
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    if len(sizes) > 1 and all(len(level) == 1 for level in sizes):
        size = in_network(cfg, data, data.size.q05, data.relative_size.q05)
        first = 2 ** round(math.log2(min(max(size, SMALLEST), LARGEST)))
        decisions["MODEL.ANCHOR_GENERATOR.SIZES"] = (
            [[first * 2**level] for level in range(len(sizes))],
            f"5 % of the objects are below {size:.0f} pixels",
        )
    return decisions
