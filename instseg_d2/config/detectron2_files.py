"""Support for Detectron2's own config files."""

import os
from collections.abc import Mapping
from typing import Union

from detectron2.config import CfgNode

from ..errors import ConfigError
from .recipes import find_recipe, meant


def find_config_file(path: Union[str, os.PathLike]) -> str:
    """
    The path of a config file: a file here, a recipe of this package (``BlendMask/R_50_1x``), or a name from
    Detectron2's model zoo (``COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml``).

    Raises:
        ConfigError: there is no such file.
    """
    path = os.path.expanduser(path)
    found = next((file for file in (path, f"{path}.yaml") if os.path.isfile(file)), None) or find_recipe(path)
    if found:
        return found
    try:
        from detectron2 import model_zoo

        return model_zoo.get_config_file(path)
    except (ImportError, RuntimeError):  # no pkg_resources; no such file
        raise ConfigError(
            f"{path}: no such config file, neither here nor in this package nor in Detectron2's model zoo.{meant(path)}"
        ) from None


def add_project_config(cfg: CfgNode, values: Mapping) -> None:
    """
    Add the keys of Detectron2's project PointRend if ``values``, the content of a config file, sets one of them.

    Raises:
        ConfigError: the installed Detectron2 lacks its projects.
    """
    model = values.get("MODEL") if isinstance(values, Mapping) else None
    model = model if isinstance(model, Mapping) else {}
    head = model.get("ROI_MASK_HEAD")
    in_head = isinstance(head, Mapping) and "POINT_HEAD_ON" in head
    if not (in_head or "POINT_HEAD" in model or "IMPLICIT_POINTREND" in model) or "POINT_HEAD" in cfg.MODEL:
        return
    try:
        from detectron2.projects.point_rend import add_pointrend_config
    except ImportError as error:
        raise ConfigError(
            "MODEL.POINT_HEAD belongs to Detectron2's project PointRend, which the installed Detectron2 lacks: "
            "install one that includes detectron2.projects.point_rend"
        ) from error
    add_pointrend_config(cfg)
