"""Building the model of a config, and what its checkpoints say of the classes."""

import logging
import os
import traceback

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from ..checkpoint import CheckpointError
from ..config import ConfigError
from ..data import DatasetError, class_names

__all__ = ["build", "class_information"]

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


def class_information(dataset_name: str) -> dict:
    """
    ``class_names`` and, where the data set has them, its own ``category_ids``, by contiguous class index, and the
    ``stuff_names`` of its semantic labels.
    """
    names = class_names(dataset_name)
    ids = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
    information = {"class_names": names}
    if ids:
        information["category_ids"] = [int(dataset_id) for dataset_id in sorted(ids, key=ids.get)]
    stuff_names = MetadataCatalog.get(dataset_name).get("stuff_classes")
    if stuff_names:
        information["stuff_names"] = list(stuff_names)
    return information
