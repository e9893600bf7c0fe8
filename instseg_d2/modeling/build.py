"""Builds the model of a config."""

import logging
import os
import re
import traceback

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..config import check_config
from ..config.values import items
from ..errors import CheckpointError, ConfigError, DatasetError

__all__ = ["build"]

logger = logging.getLogger(__name__)
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def build(cfg: CfgNode) -> torch.nn.Module:
    """
    Check the config and build ``cfg.MODEL.META_ARCHITECTURE`` on ``cfg.MODEL.DEVICE``.

    Raises:
        ConfigError: a value is invalid or does not fit the others, a part is not registered, or an operator is not
            compiled.
    """
    check_config(cfg)
    try:
        model = build_model(cfg)
    except (ConfigError, CheckpointError, DatasetError):  # ValueErrors that need no rewording
        raise
    except (KeyError, ImportError, AssertionError, ValueError) as error:
        sentence = _explain(cfg, error)
        if sentence is None:
            raise
        raise ConfigError(sentence) from error
    logger.debug("Model:\n%s", model)
    return model


def _explain(cfg: CfgNode, error: Exception):
    """One sentence about an error raised while building the model; None if it does not come from the config."""
    text = " ".join(str(error.args[0] if error.args else error).split())
    place = traceback.extract_tb(error.__traceback__)[-1]
    if place.filename.startswith(_PACKAGE) and text and not isinstance(error, KeyError):
        return text
    unknown = re.fullmatch(r"No object named '(.*)' found in '(.*)' registry!", text)
    if unknown:
        keys = " and ".join(key for key, value in items(cfg) if value == unknown[1]) or "a part of the model"
        return f"{keys} is {unknown[1]!r}; it must be one of {', '.join(_registered(error))}."
    if "detectron2._C" in text:
        return (
            "the config needs an operator of Detectron2's compiled library, which is not built here "
            f"({text.split('. ')[0]}); set MODEL.BACKBONE.NAME to build_fcos_resnet_fpn_backbone, whose deformable "
            "convolutions are torchvision's."
        )
    if isinstance(error, ImportError):
        return None
    line = f"{os.path.basename(place.filename)}, line {place.lineno}"
    return f"the model of this config cannot be built: {text or place.line} ({line})."


def _registered(error: KeyError) -> list[str]:
    """The names in the registry that raised the error."""
    trace = error.__traceback__
    while trace.tb_next is not None:
        trace = trace.tb_next
    return sorted(name for name, _ in trace.tb_frame.f_locals["self"])
