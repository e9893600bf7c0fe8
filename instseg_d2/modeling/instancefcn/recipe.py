"""Rules for InstanceFCN's recipes, see `methods.AutoRecipe`."""

import math
from collections.abc import Mapping

from detectron2.config import CfgNode

from ...data.fingerprint import Fingerprint, fixed_crop

__all__ = ["recipe_rules"]

SMALLEST, LARGEST = 64, {True: 720, False: 900}  # shorter sides in training, of small and of other recipes
LARGEST_TEST = 2048
SMALL_WINDOW = 15  # cells; small and round objects need no more
MANY = 100


def _scales(low: float, high: float, smallest: int, largest: int) -> tuple:
    """At least three scales by factors of the root of 2, from ``low`` to ``high``, within limits."""
    if high < 2 * low:
        low, high = (low * high / 2) ** 0.5, (low * high * 2) ** 0.5
    low, high = (min(max(x, smallest), largest) for x in (low, high))
    steps = math.ceil(2 * math.log2(high / low) - 0.25)
    return tuple(min(round(low * 2 ** (step / 2)), largest) for step in range(steps + 1))


def recipe_rules(cfg: CfgNode, data: Fingerprint, small: bool, unit: int, given: Mapping) -> dict:
    """Scales at which the objects, by their longer sides, have the size that windows are meant for."""
    node, length, largest = cfg.MODEL.INSTANCE_FCN, data.relative_length, LARGEST[small]
    canonical, decisions = node.CANONICAL_SIZE, {}
    if canonical / length.q50 > largest / 1.5:
        canonical = round(canonical * SMALL_WINDOW / node.MASK_SIZE, 1)
        reason = f"half of the objects are below {length.q50:.2g} of the image: smaller windows for smaller images"
        decisions = {
            "MODEL.INSTANCE_FCN.MASK_SIZE": (SMALL_WINDOW, reason),
            "MODEL.INSTANCE_FCN.CANONICAL_SIZE": (canonical, reason),
        }
    part = min((fixed_crop(cfg) or data.image_side.q50) / data.image_side.q50, 1)  # of the image's side
    train = _scales(canonical * part / length.q95, canonical * part / length.q05, SMALLEST, largest)
    test = _scales(
        canonical / length.q95, canonical / length.q05, SMALLEST, min(round(largest * 2**0.5 / part), LARGEST_TEST)
    )
    key = "MODEL.INSTANCE_FCN"
    wanted = given.get(f"{key}.CLASSIFIER_SCALE", node.CLASSIFIER_SCALE)
    if f"{key}.CLASSIFIER_SCALE" in given:
        test = tuple(sorted({*test, wanted}))
    test = given.get(f"{key}.SCALES_TEST", test)
    if node.CLASSIFY:
        nearest = min(test, key=lambda scale: abs(math.log(scale / wanted)))
        decisions[f"{key}.CLASSIFIER_SCALE"] = (nearest, f"the one next to {wanted}")
    stretch = min(max(data.image_aspect.q95, 4 / 3), 3)
    reason = (
        f"the objects' longer sides are {length.q05:.2g} to {length.q95:.2g} of the image's shorter side, "
        f"and {canonical:g} pixels at one of these"
    )
    return {
        **decisions,
        "INPUT.MIN_SIZE_TRAIN": (train, reason),
        "INPUT.MAX_SIZE_TRAIN": (round(train[-1] * stretch), f"95 % of the images are at most {stretch:.2g} : 1"),
        "MODEL.INSTANCE_FCN.SCALES_TEST": (test, reason),
        "INPUT.MIN_SIZE_TEST": (0, "the model resizes to the scales above"),
        "INPUT.MAX_SIZE_TEST": (round(test[-1] * stretch), "the same shape"),
        "TEST.TILE.SIZE": (0, "the scales above are of whole images"),
        "MODEL.INSTANCE_FCN.TOP_WINDOWS": (
            3000 if data.max_objects > MANY else 1000,
            f"of each scale; an image has up to {data.max_objects} objects",
        ),
        "TEST.DETECTIONS_PER_IMAGE": (1000, "the recall of 1000 proposals is measured"),
    }
