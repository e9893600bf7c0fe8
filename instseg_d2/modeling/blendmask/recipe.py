"""Rules for BlendMask's recipes, see `methods.AutoRecipe`."""

from collections.abc import Mapping

from detectron2.config import CfgNode

from ...data.fingerprint import Fingerprint
from ..proposal_generator.recipe import fcos_rules

__all__ = ["recipe_rules"]

FEW, SEVERAL = 200, 1000  # images: mosaics helped with 79, and with 531 of many objects, but not with 400 of six
CROWDED = 20  # objects in an image, on average


def recipe_rules(cfg: CfgNode, data: Fingerprint, small: bool, unit: int, given: Mapping) -> dict:
    """Those of FCOS, which keeps the maps that the semantic head of a panoptic model reads; mosaics of few images."""
    semantic = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES if cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED else ()
    decisions = fcos_rules(cfg, data, semantic)
    few = data.num_images < FEW or (data.num_images < SEVERAL and data.mean_objects >= CROWDED)
    if few and not data.semantic and not cfg.LSJ_AUG:
        reason = f"there are only {data.num_images} images, with {data.mean_objects:.3g} objects on average"
        decisions["INPUT.MOSAIC.PROB"] = (0.5, reason)
    return decisions
