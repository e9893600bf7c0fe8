"""Configuration: Detectron2's defaults and one node per method."""

import functools
import os

from detectron2.config import CfgNode
from detectron2.config import get_cfg as _detectron2_defaults

from ..errors import ConfigError
from ..methods import mask_head_of, methods
from .backbones import add_backbone_config, check_backbone_config
from .common import add_common_config, check_common_config, tested_in_tiles
from .detectron2_files import add_project_config, find_config_file
from .detectron2_values import check_detectron2_config
from .reading import as_written, explain, home_expanded, merge
from .values import check_types, get_value

__all__ = [
    "add_instseg_config",
    "check_config",
    "class_count_keys",
    "get_cfg",
    "get_value",
    "home_expanded",
    "load_config",
    "merge_overrides",
    "set_num_classes",
    "tested_in_tiles",
]


def add_instseg_config(cfg: CfgNode) -> None:
    """Add the keys of every method of this package to a Detectron2 config, in place."""
    add_common_config(cfg)
    add_backbone_config(cfg)
    for method in methods():
        method.add_config(cfg)


def get_cfg() -> CfgNode:
    """Detectron2's default config with the keys of this package."""
    cfg = _detectron2_defaults()
    add_instseg_config(cfg)
    return cfg


def check_config(cfg: CfgNode) -> None:
    """
    Check the type and the value of every key of a complete config. `engine.setup` calls this first, and
    `modeling.build` calls it for configs that are passed directly to the Trainer or Predictor.

    Raises:
        ConfigError: a value is invalid; the message names the key, its value and what is allowed.
    """
    check_types(cfg, get_cfg())
    check_detectron2_config(cfg)
    check_common_config(cfg)
    check_backbone_config(cfg)
    for method in methods():
        method.check_config(cfg)


def _merge_file(cfg: CfgNode, path: str) -> None:
    values = cfg.load_yaml_with_base(path, allow_unsafe=False)
    add_project_config(cfg, values)
    # Detectron2's configs of version 1 name no version, but use another key for the weights.
    version = 1 if "WEIGHT" in (values.get("MODEL") or {}) else cfg.VERSION
    if values.get("VERSION", version) == cfg.VERSION:
        merge(cfg, values, cfg.clone(), functools.partial(as_written, path))
    else:  # another version: Detectron2 converts or refuses it
        cfg.merge_from_file(path, allow_unsafe=False)


def _merge_overrides(cfg: CfgNode, opts) -> None:
    """Each value gets the type of the default, not of the value in the file."""
    defaults = get_cfg()
    add_project_config(defaults, cfg)
    for key, value in zip(opts[::2], opts[1::2]):
        *path, name = key.split(".")
        merge(cfg, functools.reduce(lambda inner, part: {part: inner}, [name, *reversed(path)], value), defaults)


def load_config(config_file: str = "", opts=()) -> CfgNode:
    """
    The config of a YAML file (with its ``_BASE_`` files, read as plain data) and overrides.

    `reading` converts the values to the types of their keys; `check_config` checks them. A mask head of this package
    gets the pooler that it needs.

    Args:
        config_file: path of a YAML file, or its name in Detectron2's model zoo; empty: the defaults.
        opts: alternating keys and values, as on the command line.

    Raises:
        ConfigError: the file is missing or not YAML, or a key or value is wrong; the message names the nearest key.
    """
    cfg = get_cfg()
    if config_file:
        config_file = find_config_file(config_file)
        try:
            _merge_file(cfg, config_file)
        except Exception as error:
            raise explain(cfg, error, config_file) from error
    merge_overrides(cfg, opts)
    cfg.MODEL.ROI_MASK_HEAD.update(mask_head_of(cfg).values)
    return cfg


def merge_overrides(cfg: CfgNode, opts) -> None:
    """
    Merge overrides into a config, in place.

    Args:
        opts: alternating keys and values, as on the command line.

    Raises:
        ConfigError: a key or value is wrong (the message names the nearest key), or an option follows an override.
    """
    opts = [os.fspath(word) if isinstance(word, os.PathLike) else word for word in opts]
    late = next((word for word in opts if str(word).startswith("--")), None)
    if late is not None:
        raise ConfigError(f"{late} must come before the config overrides KEY VALUE.")
    if len(opts) % 2:
        raise ConfigError(f"config overrides are pairs KEY VALUE; got {len(opts)} words: {' '.join(map(str, opts))}")
    try:
        _merge_overrides(cfg, opts)
    except Exception as error:
        raise explain(cfg, error, "command line") from error


def class_count_keys(cfg: CfgNode) -> dict[str, int]:
    """Every key that holds the number of classes -> number added to the foreground: 0, or 1 for the background."""
    keys = {key: extra for method in methods() for key, extra in method.class_count_keys.items()}
    if "POINT_HEAD" in cfg.MODEL:  # PointRend, see add_project_config
        keys["MODEL.POINT_HEAD.NUM_CLASSES"] = 0
    return keys


def set_num_classes(cfg: CfgNode, num_classes: int) -> None:
    """Set the number of foreground classes under every key that holds it, in place."""
    for key, extra in class_count_keys(cfg).items():
        cfg.merge_from_list([key, num_classes + extra])
