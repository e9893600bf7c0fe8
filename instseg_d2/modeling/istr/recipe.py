"""Rules for ISTR's recipes, see `methods.AutoRecipe`."""

import math
from collections.abc import Mapping

from detectron2.config import CfgNode

from ...data.fingerprint import Fingerprint
from ..recipe_rules import (
    MANY,
    cheaper_steps,
    crops_of_crowds,
    decided,
    fine_map_reason,
    no_coarse_map_reason,
    objects_seen,
    tiles_of_crops,
)

__all__ = ["heads_rules", "recipe_rules"]

MOST = {True: 200, False: 900}  # queries of small and of other recipes
SPARE = 1.5  # queries for each object
PILOTS = 20  # in a typical image; more take time
MAPS = {  # backbones of the small recipes -> the key of the maps under their pyramid
    "build_fcos_resnet_fpn_backbone": "MODEL.RESNETS.OUT_FEATURES",
    "build_fcos_timm_fpn_backbone": "MODEL.TIMM.OUT_FEATURES",
}


def heads_rules(cfg: CfgNode, data: Fingerprint, limit: int = MOST[False]) -> dict:
    """Queries by the number of objects, at most ``limit``: the only rule of `ISTRHeads`."""
    objects = objects_seen(cfg, data)[1]
    wanted = 50 * math.ceil(SPARE * objects / 50)
    where = "tiles have up to" if cfg.TEST.TILE.SIZE else "99 % of the images have at most"
    reason = f"{where} {objects} objects"
    reason += f", at most {limit} queries" if wanted > limit else ""
    return {"MODEL.ISTR.NUM_PROPOSALS": (min(max(wanted, cfg.MODEL.ISTR.NUM_PROPOSALS), limit), reason)}


def recipe_rules(cfg: CfgNode, data: Fingerprint, small: bool, unit: int, given: Mapping) -> dict:
    """
    Queries and pilots by the number of objects: a step's time grows with them, so that the fullest images may have
    more. Maps by the size of the objects. In small recipes, crops of crowded images, which are tested in tiles.
    """
    decisions, key = {}, "MODEL.ISTR.NUM_PROPOSALS"
    if small and SPARE * data.q99_objects > MANY:
        reason = f"1 % of the images have {data.q99_objects} objects or more, a crop has fewer"
        decisions = crops_of_crowds(cfg, data, given, reason)
        cfg = decided(cfg, decisions)
    decisions |= tiles_of_crops(cfg, data, given, "queries find a limited number of objects")
    cfg = decided(cfg, decisions)
    decisions |= heads_rules(cfg, data, MOST[small])
    if key in given:
        decisions[key] = given[key], "as given"
    queries = decisions[key][0]
    if cfg.MODEL.ISTR.PILOTS:
        mean = objects_seen(cfg, data)[0]
        pilots = min(max(round(PILOTS / mean), 1), cfg.MODEL.ISTR.PILOTS)
        typical = "tiles have about" if cfg.TEST.TILE.SIZE else "images have on average"
        decisions["MODEL.ISTR.PILOTS"] = pilots, f"{typical} {mean:.3g} objects"
    if not cfg.TEST.TILE.SIZE:
        most = min(cfg.TEST.DETECTIONS_PER_IMAGE, max(queries, 100))
        decisions["TEST.DETECTIONS_PER_IMAGE"] = most, "as many as queries, or 100"
    if queries > MANY and small:
        decisions |= cheaper_steps(cfg, unit, given, f"{queries} queries are expensive and take many steps to learn")
    return decisions | (_maps(decided(cfg, decisions), data, given) if small else {})


def _maps(cfg: CfgNode, data: Fingerprint, given: Mapping) -> dict:
    """The pyramid's maps by the size of the objects, unless one of the keys is given."""
    finer, fewer = fine_map_reason(cfg, data), no_coarse_map_reason(cfg, data)
    levels = range(2 if finer else 3, 5 if fewer else 6)
    names, maps = [f"res{level}" for level in levels], [f"p{level}" for level in levels]
    key = MAPS.get(cfg.MODEL.BACKBONE.NAME)
    keys = {key, "MODEL.FPN.IN_FEATURES", "MODEL.ROI_HEADS.IN_FEATURES"}
    if not key or cfg.MODEL.ROI_HEADS.IN_FEATURES == maps or not keys.isdisjoint(given):
        return {}
    return {
        key: (names, "; ".join(filter(None, (finer, fewer))) or "objects may be long"),
        "MODEL.FPN.IN_FEATURES": (names, "the same"),
        "MODEL.ROI_HEADS.IN_FEATURES": (maps, "the same"),
    }
