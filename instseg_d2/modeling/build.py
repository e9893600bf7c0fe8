"""Building the model of a config."""

import logging
import os
import traceback

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from ..errors import CheckpointError, ConfigError, DatasetError

__all__ = ["build"]

logger = logging.getLogger(__name__)


def build(cfg: CfgNode) -> torch.nn.Module:
    """
    The model of ``cfg.MODEL.META_ARCHITECTURE`` on ``cfg.MODEL.DEVICE``.

    Raises:
        ConfigError: the config names a part that is registered nowhere or needs one that is not compiled, or values
            that do not fit together.
    """
    try:
        model = build_model(cfg)
    except KeyError as error:  # how fvcore's registries say that a name is unknown
        raise ConfigError(f"the config names an unknown part of a model: {error.args[0]}") from error
    except ImportError as error:
        if "detectron2._C" not in str(error):
            raise
        raise ConfigError(
            "the config needs an operator of Detectron2's compiled library, which is not built here "
            f"({str(error).split('. ')[0]}); a ResNet-FPN whose deformable convolutions are torchvision's "
            "is MODEL.BACKBONE.NAME build_fcos_resnet_fpn_backbone."
        ) from error
    except (ConfigError, CheckpointError, DatasetError):  # ValueErrors as well, and sentences already
        raise
    except (AssertionError, ValueError) as error:  # what Detectron2's and PyTorch's parts say of their arguments
        raise ConfigError(f"the model of this config cannot be built: {_fault(error)}.") from error
    logger.debug("Model:\n%s", model)
    return model


def _fault(error: Exception) -> str:
    """What the error says, or the line of code that raised it; and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = " ".join(str(error).split()) or place.line
    return f"{text} ({os.path.basename(place.filename)}, line {place.lineno})"
