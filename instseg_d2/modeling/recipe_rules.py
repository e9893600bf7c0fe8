"""Rules for recipes that several methods share: config key -> (value, reason), see `methods.AutoRecipe`."""

import math
from collections.abc import Collection
from typing import NamedTuple

from detectron2.config import CfgNode

from ..data.fingerprint import Fingerprint, network_side

__all__ = ["Levels", "cheaper_steps", "fine_map_reason", "pyramid_levels"]

CHEAPER = 0.75  # of the side
FINE = 24  # pixels: smaller objects need a map of stride 4


class Levels(NamedTuple):
    """
    The levels of an FCOS detector.

    Attributes:
        strides: of each level, pixels, finest first.
        splits: upper ends of their ranges of max(l, t, r, b), pixels, without the last, which has none.
        dropped: number of levels that no object needs.
        reason: for all of this.
    """

    strides: list[int]
    splits: list[int]
    dropped: int
    reason: str

    @property
    def about_dropped(self) -> str:
        """In words."""
        return f"without the highest {self.dropped}, which no object reaches" if self.dropped else "all have objects"

    @property
    def names(self) -> list[str]:
        return [f"p{stride.bit_length() - 1}" for stride in self.strides]


def pyramid_levels(cfg: CfgNode, data: Fingerprint, strides: list[int]) -> Levels:
    """
    Size ranges that begin where half of the objects end, within limits, and double from level to level; without the
    highest levels that no object reaches.

    At its centre, an object's max(l, t, r, b) is half of its longer side.

    Args:
        strides: of the base recipe; MODEL.FCOS.TOP_LEVELS of them may be dropped.
    """
    side = network_side(cfg, data)
    half, almost_all = (side * length / 2 for length in (data.relative_length.q50, data.relative_length.q99))
    finest = strides[0]
    # A range that ends below 4 strides leaves no room for the locations around the centre; 8 strides are the paper's.
    first = min(max(8 * math.ceil(half / 8), 4 * finest), 8 * finest)
    splits = [first * 2**level for level in range(len(strides) - 1)]
    dropped = 0
    while dropped < cfg.MODEL.FCOS.TOP_LEVELS and len(splits) > 1 and splits[-1] > 1.2 * almost_all:
        dropped += 1
        splits.pop()
    reason = (
        f"half of the objects' longer sides are below {2 * half:.0f} pixels and 99 % below {2 * almost_all:.0f} in "
        f"images of {side:.0f}; from its centre to its side, an object has half of that"
    )
    return Levels(list(strides[: len(splits) + 1]), splits, dropped, reason)


def fine_map_reason(cfg: CfgNode, data: Fingerprint) -> str:
    """Why a map of stride 4 is needed; empty if it is not."""
    size = network_side(cfg, data) * data.relative_size.q50
    return f"half of the objects are below {size:.0f} pixels: features of stride 4" if size < FINE else ""


def cheaper_steps(cfg: CfgNode, unit: int, given: Collection, reason: str) -> dict:
    """Smaller images and batches of two, or of ``unit`` if that is more, for what needs many steps; not if given."""
    batch, sizes = min(cfg.SOLVER.IMS_PER_BATCH, unit * math.ceil(2 / unit)), cfg.INPUT.MIN_SIZE_TRAIN
    decisions = {}
    if batch != cfg.SOLVER.IMS_PER_BATCH:
        decisions = {
            "SOLVER.IMS_PER_BATCH": (batch, reason),
            "SOLVER.BASE_LR": (
                float(f"{cfg.SOLVER.BASE_LR * math.sqrt(batch / cfg.SOLVER.IMS_PER_BATCH):.3g}"),
                "times the root of the batch's change",
            ),
            "SOLVER.MAX_ITER": (
                round(cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / batch),
                "as many images as in larger batches; --minutes fits it to a time",
            ),
        }
    if sizes[0] * CHEAPER < 160 or cfg.INPUT.CROP.ENABLED or "INPUT.MIN_SIZE_TRAIN" in given:
        return decisions
    smaller = tuple(sorted({32 * round(CHEAPER * size / 32) for size in sizes}))
    decisions |= {
        "INPUT.MIN_SIZE_TRAIN": (smaller, f"{reason}: {CHEAPER:g} of the usual size"),
        "INPUT.MAX_SIZE_TRAIN": (32 * math.ceil(CHEAPER * cfg.INPUT.MAX_SIZE_TRAIN / 32), "the same"),
    }
    if "INPUT.MIN_SIZE_TEST" in given:
        return decisions
    return {
        **decisions,
        "INPUT.MIN_SIZE_TEST": (smaller[-1], "the largest size of the training"),
        "INPUT.MAX_SIZE_TEST": (32 * math.ceil(CHEAPER * cfg.INPUT.MAX_SIZE_TEST / 32), "the same"),
    }
