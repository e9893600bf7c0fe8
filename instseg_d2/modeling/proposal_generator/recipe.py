"""Rules for recipes with FCOS, see `methods.AutoRecipe`."""

from collections.abc import Collection, Mapping

from detectron2.config import CfgNode

from ...data.fingerprint import Fingerprint
from ..recipe_rules import pyramid_levels

__all__ = ["fcos_rules", "recipe_rules"]


def fcos_rules(cfg: CfgNode, data: Fingerprint, needed: Collection[str] = ()) -> dict:
    """The levels of FCOS by the size of the objects, its caps by their number; the maps needed are kept."""
    levels = pyramid_levels(cfg, data, cfg.MODEL.FCOS.FPN_STRIDES, needed)
    cap = cfg.TEST.DETECTIONS_PER_IMAGE
    return {
        "MODEL.FCOS.IN_FEATURES": (levels.names, levels.about_dropped),
        "MODEL.FCOS.FPN_STRIDES": (levels.strides, "of these levels"),
        "MODEL.FCOS.TOP_LEVELS": (cfg.MODEL.FCOS.TOP_LEVELS - levels.dropped, "of these, above the backbone's"),
        "MODEL.FCOS.SIZES_OF_INTEREST": (levels.splits, levels.reason),
        "MODEL.FCOS.POST_NMS_TOPK_TEST": (cap, "as TEST.DETECTIONS_PER_IMAGE"),
        "MODEL.FCOS.PRE_NMS_TOPK_TEST": (
            max(4 * cap, cfg.MODEL.FCOS.PRE_NMS_TOPK_TEST),
            "of each level; at least 4 candidates for each detection",
        ),
    }


def recipe_rules(cfg: CfgNode, data: Fingerprint, small: bool, unit: int, given: Mapping) -> dict:
    """Those of the detector alone."""
    return fcos_rules(cfg, data)
