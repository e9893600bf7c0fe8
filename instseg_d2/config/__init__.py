"""Configuration: Detectron2's defaults and one node a method."""

import contextlib
import difflib
import functools
import operator
import os
import re

import yaml
from detectron2.config import CfgNode
from detectron2.config import get_cfg as _detectron2_defaults

from ..errors import ConfigError
from ..methods import mask_head_of, methods
from .backbones import add_backbone_config
from .common import add_common_config
from .detectron2_files import add_project_config, find_config_file

__all__ = [
    "add_instseg_config",
    "class_count_keys",
    "get_cfg",
    "get_value",
    "load_config",
    "merge_overrides",
    "set_num_classes",
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


def get_value(cfg: CfgNode, key: str):
    """The value of a key such as "MODEL.DEVICE"."""
    return functools.reduce(operator.getitem, key.split("."), cfg)


def _keys(node: CfgNode, prefix: str = ""):
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _keys(value, f"{prefix}{key}.")


def _explain(cfg: CfgNode, error: Exception, source: str) -> ConfigError:
    """One sentence on what a file or the command line has wrong; errors of yacs are known by their words."""
    message = str(error.args[0] if error.args else error)
    if isinstance(error, OSError):  # a _BASE_, or the file itself
        file = "" if error.filename in (None, source) else f"{error.filename}: "
        return ConfigError(f"{source}: {file}{error.strerror or message}.")
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark  # names the file, which may be a _BASE_
        return ConfigError(f"{mark.name}, line {mark.line + 1}: {error.problem}.")
    if isinstance(error, (yaml.YAMLError, UnicodeDecodeError)):
        return ConfigError(f"{source}: it or its _BASE_ is no YAML text ({' '.join(str(error).split())}).")
    if isinstance(error, (TypeError, AttributeError)):
        return ConfigError(f"{source}: it or its _BASE_ is no YAML mapping of config keys.")
    if isinstance(error, (KeyError, AssertionError)) and "Non-existent" in message:
        key = message.rsplit(" ", 1)[-1]
        return ConfigError(f"{source}: there is no config key {key}.{_nearest(cfg, key)}")
    if message.startswith("Type mismatch"):
        message = _explain_type(cfg, message)
    return ConfigError(f"{source}: {message}")


def _nearest(cfg: CfgNode, key: str) -> str:
    known = {name.lower(): name for name in _keys(cfg)}
    near = difflib.get_close_matches(key.lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean {known[near[0]]}?" if near else ""


def _explain_type(cfg: CfgNode, message: str) -> str:
    """Of yacs' "Type mismatch (<type> vs. <type>) with values (default vs. given) for config key: KEY"."""
    key = message.rsplit(" ", 1)[-1]
    default = get_value(cfg, key)
    if isinstance(default, CfgNode):
        return f"{key} is a section, not a value: set a key in it, as {key}.{next(iter(default))}."
    given = message.rsplit(" vs. ", 1)[-1].rsplit(") for config key", 1)[0]
    if "vs. <class 'detectron2.config.config.CfgNode'>" in message:
        return f"{key} is a value, not a section: it has no key {given.split(':')[0]}."
    if isinstance(default, (tuple, list)) and re.search(r"vs\. <class '(str|int|float)'>", message):
        given = f'"{given}"' if "vs. <class 'str'>" in message else given
        return (
            f"{key} takes several values: write one as {f'({given},)' if isinstance(default, tuple) else f'[{given}]'}."
        )
    return message


def _numbers_like(values, defaults):
    """Nested dicts with whole numbers (or texts of them) made real where the default is: yacs wants its very type."""
    if isinstance(values, dict) and isinstance(defaults, dict):
        return {key: _numbers_like(value, defaults.get(key)) for key, value in values.items()}
    if isinstance(defaults, float) and not isinstance(values, (bool, float)):
        with contextlib.suppress(TypeError, ValueError):
            return float(int(values))
    return values


def _merge(cfg: CfgNode, values: dict) -> None:
    cfg.merge_from_other_cfg(CfgNode(_numbers_like(values, cfg)))


def _merge_file(cfg: CfgNode, path: str) -> None:
    values = cfg.load_yaml_with_base(path, allow_unsafe=False)
    add_project_config(cfg, values)
    # Detectron2's first configs, of its version 1, do not say so, but call the weights by another name.
    version = 1 if "WEIGHT" in (values.get("MODEL") or {}) else cfg.VERSION
    if values.get("VERSION", version) == cfg.VERSION:
        _merge(cfg, values)
    else:  # of another Detectron2, which converts it or says why not
        cfg.merge_from_file(path, allow_unsafe=False)


def _merge_overrides(cfg: CfgNode, opts) -> None:
    """Each value has the type of the default, whatever the file has put in its place."""
    typed = get_cfg()
    add_project_config(typed, cfg)
    for key, value in zip(opts[::2], opts[1::2]):
        *path, name = key.split(".")
        _merge(typed, functools.reduce(lambda inner, part: {part: inner}, [name, *reversed(path)], value))
        target, source = (functools.reduce(operator.getitem, path, tree) for tree in (cfg, typed))
        target[name] = source[name]


def load_config(config_file: str = "", opts=()) -> CfgNode:
    """
    The config of a YAML file (its ``_BASE_`` files included, read as plain data) with overrides.

    Real numbers may be written without a point, in both. A mask head of this package gets the pooler that it reads.

    Args:
        config_file: path of a YAML file, or its name in Detectron2's model zoo; empty: the defaults.
        opts: alternating keys and values, as on the command line.

    Raises:
        ConfigError: the file is missing or no YAML, or a key or value does not fit; it names the nearest key.
    """
    cfg = get_cfg()
    if config_file:
        config_file = find_config_file(config_file)
        try:
            _merge_file(cfg, config_file)
        except Exception as error:
            raise _explain(cfg, error, config_file) from error
    merge_overrides(cfg, opts)
    cfg.MODEL.ROI_MASK_HEAD.update(mask_head_of(cfg).values)
    return cfg


def merge_overrides(cfg: CfgNode, opts) -> None:
    """
    Put overrides into a config, in place; real numbers may be written without a point.

    Args:
        opts: alternating keys and values, as on the command line.

    Raises:
        ConfigError: a key or value does not fit (it names the nearest key), or an option stands among them.
    """
    opts = [os.fspath(word) if isinstance(word, os.PathLike) else word for word in opts]
    late = next((word for word in opts if str(word).startswith("--")), None)
    if late is not None:
        raise ConfigError(f"{late} stands among the config overrides; give it before the first KEY VALUE.")
    if len(opts) % 2:
        raise ConfigError(f"overrides come in pairs KEY VALUE; got {len(opts)} words: {' '.join(map(str, opts))}")
    try:
        _merge_overrides(cfg, opts)
    except Exception as error:
        raise _explain(cfg, error, "command line") from error


def class_count_keys(cfg: CfgNode) -> dict[str, int]:
    """Every key that holds the number of classes, and what it counts beside the foreground: 0, or 1 (background)."""
    keys = {key: extra for method in methods() for key, extra in method.class_count_keys.items()}
    if "POINT_HEAD" in cfg.MODEL:  # PointRend's, see add_project_config
        keys["MODEL.POINT_HEAD.NUM_CLASSES"] = 0
    return keys


def set_num_classes(cfg: CfgNode, num_classes: int) -> None:
    """Set the number of foreground classes under every key that holds it, in place."""
    for key, extra in class_count_keys(cfg).items():
        cfg.merge_from_list([key, num_classes + extra])
