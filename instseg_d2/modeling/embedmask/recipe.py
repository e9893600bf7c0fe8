"""Rules for EmbedMask's recipes, see `methods.AutoRecipe`."""

from collections.abc import Mapping

from detectron2.config import CfgNode

from ...data.fingerprint import Fingerprint
from ..recipe_rules import pyramid_levels

__all__ = ["recipe_rules"]


def recipe_rules(cfg: CfgNode, data: Fingerprint, small: bool, unit: int, given: Mapping) -> dict:
    """The levels of the detector by the size of the objects, its cap by their number."""
    node = cfg.MODEL.EMBED_MASK
    levels = pyramid_levels(cfg, data, node.FPN_STRIDES)
    return {
        "MODEL.EMBED_MASK.FPN_STRIDES": (levels.strides, levels.about_dropped),
        "MODEL.FCOS.TOP_LEVELS": (cfg.MODEL.FCOS.TOP_LEVELS - levels.dropped, "of these, above the backbone's"),
        "MODEL.EMBED_MASK.FPN_INTEREST_SPLIT": (levels.splits, levels.reason),
        "MODEL.EMBED_MASK.PRE_NMS_TOP_N": (
            max(4 * cfg.TEST.DETECTIONS_PER_IMAGE, node.PRE_NMS_TOP_N),
            "of each level; at least 4 candidates for each detection",
        ),
    }
