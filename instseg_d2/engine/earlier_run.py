"""Handles the results of an earlier run in OUTPUT_DIR: checks them before resuming, moves them aside for a new run."""

import itertools
import json
import logging
import os
import re
from collections.abc import Mapping

from detectron2.config import CfgNode

from ..config.values import items
from ..data.coco import class_difference
from ..errors import ConfigError, DatasetError
from ..files import write_bytes

__all__ = ["require_same_run", "set_aside", "truncate_metrics"]

logger = logging.getLogger(__name__)

# What a run writes. The checkpoint to resume from is moved first, so a half-moved run is never resumed.
_RESULTS = (
    r"last_checkpoint",
    r"model_(\d{7}|final|best)\.pth",
    r"metrics\.json",
    r"trackers\.json",
    r"inference",
    r"events\.out\.tfevents\..*",
    r"bad_batch(_\d+)?\.pth",
)


def require_same_run(checkpoint: Mapping, cfg: CfgNode, classes: Mapping) -> None:
    """
    Check that a run can be resumed, and log which config values have changed.

    Args:
        checkpoint: the content of the checkpoint to resume from; its weights are not needed.
        classes: ``class_names`` of the training data and, if it has semantic labels, ``stuff_names``.

    Raises:
        DatasetError: the checkpoint was trained on other classes, or in another order of them.
        ConfigError: the checkpoint is of another meta-architecture.
    """
    remedy = "resume with its data and its config.yaml, or start a new run in another OUTPUT_DIR"
    for key in ("class_names", "stuff_names"):
        if key in checkpoint and key in classes:
            difference = class_difference(checkpoint[key], classes[key], "that run", cfg.DATASETS.TRAIN[0])
            if difference:
                raise DatasetError(f"the run in {cfg.OUTPUT_DIR} was trained on other classes: {difference}; {remedy}.")
    if "cfg" not in checkpoint:
        return
    before, now = (dict(items(CfgNode.load_cfg(text))) for text in (checkpoint["cfg"], cfg.dump()))
    key = "MODEL.META_ARCHITECTURE"
    if before.get(key) != now[key]:
        raise ConfigError(f"the run in {cfg.OUTPUT_DIR} trained {before.get(key)}, not {now[key]}: {remedy}.")
    changes = [
        f"{key} {before[key]} -> {value}"
        for key, value in now.items()
        if not isinstance(value, CfgNode) and before.get(key, value) != value
    ]
    if changes:
        logger.info("Config values that have changed: %s.", ", ".join(changes))


def set_aside(folder: str, *others: str) -> str:
    """
    Move the results of an earlier run to the subfolder ``earlier`` (or ``earlier_2`` etc. if that exists).

    Args:
        others: names of files that go with them.

    Returns:
        The new folder; empty if there was nothing to move.
    """
    names = [
        name
        for pattern in _RESULTS
        for name in sorted(os.listdir(folder) if os.path.isdir(folder) else ())
        if re.fullmatch(pattern, name)
    ]
    if not names:
        return ""
    candidates = itertools.chain(["earlier"], (f"earlier_{number}" for number in itertools.count(2)))
    target = next(path for name in candidates if not os.path.exists(path := os.path.join(folder, name)))
    os.mkdir(target)
    for name in [*names, "config.yaml", *others]:
        if os.path.exists(os.path.join(folder, name)):
            os.rename(os.path.join(folder, name), os.path.join(target, name))
    return target


def truncate_metrics(path: str, iteration: int) -> None:
    """
    Remove the lines of this and later iterations from ``metrics.json``, and incomplete lines. Lines may be out of
    order: Detectron2 writes evaluations late.
    """
    if not os.path.isfile(path):
        return

    def valid(line: bytes) -> bool:
        try:
            return line.endswith(b"\n") and json.loads(line)["iteration"] < iteration
        except (ValueError, KeyError, TypeError):
            return False

    with open(path, "rb") as file:
        lines = file.readlines()
    write_bytes(path, b"".join(filter(valid, lines)))
