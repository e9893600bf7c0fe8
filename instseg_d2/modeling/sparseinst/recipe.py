"""Rules for SparseInst's recipes, see `methods.AutoRecipe`."""

import math
from collections.abc import Mapping

from detectron2.config import CfgNode

from ...data.fingerprint import Fingerprint
from ..recipe_rules import (
    MANY,
    MARGIN,
    cheaper_steps,
    crops_of_crowds,
    decided,
    fine_map_reason,
    objects_seen,
    tiles_of_crops,
)

__all__ = ["heads_rules", "recipe_rules"]

MOST = 500  # slots
MAPS = {  # backbones with a map of stride 4 -> the key of their maps
    "build_resnet_backbone": "MODEL.RESNETS.OUT_FEATURES",
    "build_timm_backbone": "MODEL.TIMM.OUT_FEATURES",
}
SPOTS = 50  # pilots in the objects of a typical image; more take time


def heads_rules(cfg: CfgNode, data: Fingerprint, largest: int = MOST) -> dict:
    """Slots by the number of objects, at most ``largest``: the only rule of `SparseInstHeads`."""
    key, (_, _, most) = "MODEL.SPARSE_INST", objects_seen(cfg, data)
    where = "a tile" if cfg.TEST.TILE.SIZE else "an image"
    wanted = 20 * math.ceil(MARGIN * most / 20)
    slots = min(max(wanted, cfg.MODEL.SPARSE_INST.DECODER.NUM_MASKS), largest)
    limit = f", at most {largest} slots" if wanted > largest else ""
    return {
        f"{key}.DECODER.NUM_MASKS": (slots, f"{where} has up to {most} objects{limit}"),
        f"{key}.MAX_DETECTIONS": (slots, "one of each slot"),
    }


def recipe_rules(cfg: CfgNode, data: Fingerprint, small: bool, unit: int, given: Mapping) -> dict:
    """
    Slots and pilots by the number of objects; a finer map if these are small; more weight of masks, where the base has
    less than the authors, for a single class. In small recipes, crops of crowded images, which are tested in tiles, or,
    where these are not possible, narrow layers for many slots.
    """
    decisions = {}
    if small and MARGIN * data.max_objects > MANY:
        decisions = crops_of_crowds(cfg, data, given, f"an image has up to {data.max_objects} objects, a crop fewer")
        cfg = decided(cfg, decisions)
    decisions |= tiles_of_crops(cfg, data, given, "slots find a limited number of objects")
    cfg = decided(cfg, decisions)
    decisions |= heads_rules(cfg, data, MANY if small and cfg.TEST.TILE.SIZE else MOST)
    slots = decisions["MODEL.SPARSE_INST.DECODER.NUM_MASKS"][0]
    mean, _, most = objects_seen(cfg, data)
    node, images, key = cfg.MODEL.SPARSE_INST, cfg.INPUT, "MODEL.SPARSE_INST"
    where = "a tile" if cfg.TEST.TILE.SIZE else "an image"
    if node.LOSS.PILOTS:
        pilots = min(max(round(SPOTS / mean), 1), node.LOSS.PILOTS)
        often = "about" if cfg.TEST.TILE.SIZE else "on average"
        decisions[f"{key}.LOSS.PILOTS"] = (pilots, f"{where} has {often} {mean:.3g} objects")
    if sum(map(bool, data.classes.values())) == 1 and node.LOSS.MASK_DICE_WEIGHT < 2:
        reason = "there is only one class to learn, so masks count as much"
        decisions |= {
            f"{key}.LOSS.CLASS_WEIGHT": (2.0, reason),
            f"{key}.LOSS.MASK_PIXEL_WEIGHT": (2.0, "the same"),
            f"{key}.LOSS.MASK_DICE_WEIGHT": (2.0, "the same"),
        }
    if images.COPY_PASTE and 2 * most > slots:
        reason = f"{where} with pasted objects may have {2 * most}, more than the slots"
        decisions["INPUT.COPY_PASTE"] = (0.0, reason)
    if small and not images.CROP.ENABLED and "INPUT.MIN_SIZE_TEST" not in given:
        decisions |= {
            "INPUT.MIN_SIZE_TEST": (images.MIN_SIZE_TRAIN[-1], "maps of slots do not carry over to larger images"),
            "INPUT.MAX_SIZE_TEST": (images.MAX_SIZE_TRAIN, "the same"),
        }
    many = slots > MANY and small
    if many:
        reason = f"{slots} slots take many steps to divide the image among themselves"
        decisions |= cheaper_steps(cfg, unit, given, reason)
    maps, reason = MAPS.get(cfg.MODEL.BACKBONE.NAME), fine_map_reason(decided(cfg, decisions), data)
    if reason and maps:
        decisions |= {
            maps: (["res2", "res3", "res4"], reason),
            f"{key}.ENCODER.IN_FEATURES": (["res2", "res3", "res4"], reason),
            f"{key}.DECODER.SCALE_FACTOR": (1.0, "the features are as fine as the masks"),
        }
    if not many:
        return decisions
    narrow = f"narrow, since {slots} slots each have a map"
    return {
        **decisions,
        f"{key}.ENCODER.NUM_CHANNELS": (64, narrow),
        f"{key}.DECODER.INST.DIM": (64, narrow),
        f"{key}.DECODER.MASK.DIM": (64, narrow),
        f"{key}.DECODER.GROUPS": (1, "the same"),
    }
