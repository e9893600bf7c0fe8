"""Rules for BlendMask's recipes, see `methods.AutoRecipe`."""

from collections.abc import Mapping

from detectron2.config import CfgNode

from ...data.fingerprint import Fingerprint
from ..proposal_generator.recipe import fcos_rules

__all__ = ["recipe_rules"]


def recipe_rules(cfg: CfgNode, data: Fingerprint, small: bool, unit: int, given: Mapping) -> dict:
    """Those of FCOS, which keeps the maps that the semantic head of a panoptic model reads."""
    semantic = cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES if cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED else ()
    return fcos_rules(cfg, data, semantic)
