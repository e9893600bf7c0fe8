"""Rules for BlendMask's recipes, see `methods.AutoRecipe`."""

from collections.abc import Mapping

from detectron2.config import CfgNode

from ...data.fingerprint import Fingerprint
from ..recipe_rules import pyramid_levels

__all__ = ["recipe_rules"]


def recipe_rules(cfg: CfgNode, data: Fingerprint, small: bool, unit: int, given: Mapping) -> dict:
    """The levels of FCOS by the size of the objects, its caps by their number."""
    levels = pyramid_levels(cfg, data, cfg.MODEL.FCOS.FPN_STRIDES)
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
