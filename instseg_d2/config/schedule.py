"""The schedule of a training: SOLVER.MAX_ITER, and the keys that are counted in its iterations."""

import itertools
import math
from collections.abc import Collection

from detectron2.config import CfgNode

from .values import get_value

__all__ = ["SCHEDULE", "rescale", "rest_of_schedule", "with_values"]

SCHEDULE = (
    "SOLVER.MAX_ITER",
    "SOLVER.STEPS",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.FREEZE_BACKBONE_ITER",
    "SOLVER.FREEZE_NORMS_ITER",
    "TEST.EVAL_PERIOD",
)


def with_values(cfg: CfgNode, values: dict) -> CfgNode:
    """A frozen copy with other values, by their full names."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list(list(itertools.chain(*values.items())))
    cfg.freeze()
    return cfg


def rest_of_schedule(cfg: CfgNode, max_iter: int) -> dict:
    """The other values of `SCHEDULE` that are not 0 or empty, by full names, at the same shares of ``max_iter``."""
    factor = max_iter / cfg.SOLVER.MAX_ITER

    def scaled(value: int) -> int:
        return max(1, math.ceil(value * factor - 1e-9))

    values = {key: get_value(cfg, key) for key in SCHEDULE[1:]}
    values = {key: value for key, value in values.items() if value not in ((), 0, -1)}
    return {k: tuple(sorted(set(map(scaled, v)))) if k == "SOLVER.STEPS" else scaled(v) for k, v in values.items()}


def rescale(cfg: CfgNode, max_iter: int, kept: Collection[str] = ()) -> CfgNode:
    """The config with another ``SOLVER.MAX_ITER``; the rest of the schedule, but the keys kept, by the same factor."""
    rest = {key: value for key, value in rest_of_schedule(cfg, max_iter).items() if key not in kept}
    return with_values(cfg, {"SOLVER.MAX_ITER": max_iter, **rest})
