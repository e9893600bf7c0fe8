"""Rules for SparseInst's recipes, see `methods.AutoRecipe`."""

import math
from collections.abc import Collection

from detectron2.config import CfgNode

from ...data.fingerprint import Fingerprint
from ..recipe_rules import cheaper_steps, fine_map_reason

__all__ = ["recipe_rules"]

MOST = 500  # slots
MANY = 100
MAPS = {  # backbones with a map of stride 4 -> the key of their maps
    "build_resnet_backbone": "MODEL.RESNETS.OUT_FEATURES",
    "build_timm_backbone": "MODEL.TIMM.OUT_FEATURES",
}
SPOTS = 50  # pilots in the objects of a typical image; more take time


def recipe_rules(cfg: CfgNode, data: Fingerprint, small: bool, unit: int, given: Collection) -> dict:
    """
    Slots and pilots by the number of objects; a finer map if these are small; in small recipes, narrow layers for many
    slots; more weight of masks, where the base has less than the authors, for a single class.
    """
    node = cfg.MODEL.SPARSE_INST
    wanted = 20 * math.ceil(1.2 * data.max_objects / 20)
    slots = min(max(wanted, node.DECODER.NUM_MASKS), MOST)
    limit = f", at most {MOST} slots" if wanted > MOST else ""
    decisions = {
        "MODEL.SPARSE_INST.DECODER.NUM_MASKS": (slots, f"an image has up to {data.max_objects} objects{limit}"),
        "MODEL.SPARSE_INST.MAX_DETECTIONS": (slots, "one of each slot"),
    }
    if node.LOSS.PILOTS:
        pilots = min(max(round(SPOTS / data.mean_objects), 1), node.LOSS.PILOTS)
        reason = f"an image has {data.mean_objects:.3g} objects on average"
        decisions["MODEL.SPARSE_INST.LOSS.PILOTS"] = (pilots, reason)
    if sum(map(bool, data.classes.values())) == 1 and node.LOSS.MASK_DICE_WEIGHT < 2:
        reason = "there is only one class to learn, so masks count as much"
        decisions |= {
            "MODEL.SPARSE_INST.LOSS.CLASS_WEIGHT": (2.0, reason),
            "MODEL.SPARSE_INST.LOSS.MASK_PIXEL_WEIGHT": (2.0, "the same"),
            "MODEL.SPARSE_INST.LOSS.MASK_DICE_WEIGHT": (2.0, "the same"),
        }
    images = cfg.INPUT
    if images.COPY_PASTE and 2 * data.max_objects > slots:
        reason = f"the objects of two images, {2 * data.max_objects}, may be more than the slots"
        decisions["INPUT.COPY_PASTE"] = (0.0, reason)
    if small and not images.CROP.ENABLED and "INPUT.MIN_SIZE_TEST" not in given:
        decisions |= {
            "INPUT.MIN_SIZE_TEST": (images.MIN_SIZE_TRAIN[-1], "maps of slots do not carry over to larger images"),
            "INPUT.MAX_SIZE_TEST": (images.MAX_SIZE_TRAIN, "the same"),
        }
    maps, reason = MAPS.get(cfg.MODEL.BACKBONE.NAME), fine_map_reason(cfg, data)
    if reason and maps:
        decisions |= {
            maps: (["res2", "res3", "res4"], reason),
            "MODEL.SPARSE_INST.ENCODER.IN_FEATURES": (["res2", "res3", "res4"], reason),
            "MODEL.SPARSE_INST.DECODER.SCALE_FACTOR": (1.0, "the features are as fine as the masks"),
        }
    if slots <= MANY or not small:
        return decisions
    narrow = f"narrow, since {slots} slots each have a map"
    return {
        **decisions,
        **cheaper_steps(cfg, unit, given, f"{slots} slots take many steps to divide the image among themselves"),
        "MODEL.SPARSE_INST.ENCODER.NUM_CHANNELS": (64, narrow),
        "MODEL.SPARSE_INST.DECODER.INST.DIM": (64, narrow),
        "MODEL.SPARSE_INST.DECODER.MASK.DIM": (64, narrow),
        "MODEL.SPARSE_INST.DECODER.GROUPS": (1, "the same"),
    }
