"""Rules for recipes of Detectron2's GeneralizedRCNN, see `methods.AutoRecipe`."""

import math
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY

from ..data.fingerprint import Fingerprint
from .recipe_rules import in_network

__all__ = ["recipe_rules"]

SMALLEST, LARGEST = 8, 32  # side in pixels of the smallest anchor
SPARE = 3  # proposals for each object of the fullest image


def recipe_rules(cfg: CfgNode, data: Fingerprint, small: bool, unit: int, given: Mapping) -> dict:
    """
    Anchors that begin at the size of small objects, where each level has one of its own, and proposals for the fullest
    image; without proposals, the rules of the ROI heads, their static method ``recipe_rules``.
    """
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME != "RPN":
        name = cfg.MODEL.ROI_HEADS.NAME
        own = getattr(ROI_HEADS_REGISTRY.get(name), "recipe_rules", None) if name in ROI_HEADS_REGISTRY else None
        return own(cfg, data) if own else {}
    decisions = {}
    for part in ("TRAIN", "TEST"):
        for stage in ("PRE", "POST"):
            key, wanted = f"{stage}_NMS_TOPK_{part}", SPARE * data.max_objects
            if wanted > cfg.MODEL.RPN[key]:
                decisions[f"MODEL.RPN.{key}"] = (wanted, f"{SPARE} for each of up to {data.max_objects} objects")
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    if len(sizes) > 1 and all(len(level) == 1 for level in sizes):
        size = in_network(cfg, data, data.size.q05, data.relative_size.q05)
        first = 2 ** round(math.log2(min(max(size, SMALLEST), LARGEST)))
        decisions["MODEL.ANCHOR_GENERATOR.SIZES"] = (
            [[first * 2**level] for level in range(len(sizes))],
            f"5 % of the objects are below {size:.0f} pixels",
        )
    return decisions
