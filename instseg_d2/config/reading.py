"""Converts the values that users write for config keys, in files or on the command line, and explains mistakes."""

import contextlib
import difflib
import json
import math
import os
import re
from ast import literal_eval
from collections.abc import Mapping
from typing import Any, Callable, Optional

import yaml
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from ..errors import ConfigError
from .values import get_value, items

__all__ = ["as_written", "explain", "home_expanded", "merge"]

Written = Callable[[str], Optional[str]]


def merge(cfg: CfgNode, values: Mapping, defaults: CfgNode, written: Written = lambda key: None, prefix="") -> None:
    """
    Merge values into a config, in place.

    Args:
        values: nested values from YAML, or texts from the command line.
        defaults: a config that defines the keys and their types.
        written: key -> the text of its value in the file, or None.

    Raises:
        ConfigError: a key is unknown, or a value does not fit its key; the message names the key.
    """
    for name, value in values.items():
        key = f"{prefix}{name}"
        if name not in defaults:
            raise ConfigError(f"there is no config key {key}.{_nearest(defaults, key, prefix)}")
        default = defaults[name]
        if isinstance(default, CfgNode):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{key} is a section, not a value: set a key in it, as {key}.{next(iter(default))}.")
            merge(cfg[name], value, default, written, f"{key}.")
        elif isinstance(value, Mapping):
            raise ConfigError(f"{key} is a value, not a section: it has no key {next(iter(value), '')}.")
        else:
            cfg[name] = _converted(key, value, default, written)


def _converted(key: str, value: Any, default: Any, written: Written) -> Any:
    """Convert a value to the default's type; texts that are Python literals are evaluated."""
    if isinstance(default, str):
        return _text(key, value, written)
    if isinstance(default, (list, tuple)):
        return type(default)(_sequence(key, value, default))
    if isinstance(default, bool) or default is None:
        flag = _flag(value)
        if default is None or isinstance(flag, bool):
            return flag
        raise ConfigError(f"{key} takes True or False; got {value}.")
    number = _number(value, type(default))
    if number is None and not (_literal(value) is None and isinstance(default, float)):  # SOLVER.WEIGHT_DECAY_NORM
        raise ConfigError(
            f"{key} takes a {'whole ' * isinstance(default, int)}number; got {value}.{_comma(value, type(default))}"
        )
    return number


def _literal(value: Any) -> Any:
    """Evaluate a text that is a Python literal; return anything else unchanged."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return literal_eval(value.strip())
    return value


def _number(value: Any, kind: type) -> Any:
    """A number of this kind, or None."""
    value = _literal(value)
    if isinstance(value, str) and re.fullmatch(r"[-+]?(inf|nan)", value.strip().lower()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if kind is int:
        return int(value) if math.isfinite(value) and int(value) == value else None
    return float(value)


def _comma(value: Any, kind: type) -> str:
    """A hint for a number written with a comma."""
    if not isinstance(value, str) or not re.fullmatch(r"\s*[-+]?\d+(,\d+)+\s*", value):
        return ""
    return f" Numbers have no comma: write {value.strip().replace(',', '.' if kind is float else '')}."


def _flag(value: Any) -> Any:
    """Read YAML's words for true and false; other values as literals."""
    if isinstance(value, str) and value.strip().lower() in ("true", "yes", "on", "false", "no", "off"):
        return value.strip().lower() in ("true", "yes", "on")
    return _literal(value)


def _text(key: str, value: Any, written: Written) -> str:
    """Convert to text: ~ is expanded, and numbers, dates and booleans keep their spelling in the YAML file."""
    literal = _literal(value)
    if literal is None or isinstance(literal, str):
        return os.path.expanduser(literal or "")
    if isinstance(value, (list, tuple)):
        raise ConfigError(f"{key} takes a single text; got {value}.")
    return written(key) or str(value)


def _sequence(key: str, value: Any, default) -> list:
    values = _literal(value)
    if isinstance(values, str) and re.fullmatch(r"\s*[\[(].*[\])]\s*", values):  # the shell removed the quotes
        with contextlib.suppress(yaml.YAMLError):
            values = yaml.safe_load(f"[{values.strip()[1:-1]}]")
    if values is None:
        return []
    if not isinstance(values, (list, tuple)):
        parts = values.split(",") if isinstance(values, str) else [values]
        shown = ", ".join(json.dumps(x.strip() if isinstance(x, str) else x, default=str) for x in parts)
        comma = "," if len(parts) == 1 else ""
        shown = f"({shown}{comma})" if isinstance(default, tuple) else f"[{shown}]"
        raise ConfigError(f"{key} takes several values: write {'one' if comma else 'them'} as {shown}.")
    if default and isinstance(default[0], (int, float)) and not isinstance(default[0], bool):
        return [_element(x, default[0]) for x in values]
    return list(values)


def _element(value: Any, default: float) -> Any:
    """Convert a whole number to an int if the default is an int; other values keep their type."""
    value = _literal(value)
    whole = _number(value, int) if isinstance(default, int) else None
    return value if whole is None else whole


def home_expanded(cfg: CfgNode) -> CfgNode:
    """Expand ~ at the start of texts; returns a copy if anything changes."""
    changed = {
        key: os.path.expanduser(value) for key, value in items(cfg) if isinstance(value, str) and value.startswith("~")
    }
    if changed:
        cfg = cfg.clone()
    for key, value in changed.items():
        section, _, name = key.rpartition(".")
        (get_value(cfg, section) if section else cfg)[name] = value
    return cfg


def as_written(path: str, key: str) -> Optional[str]:
    """The text of a value in a YAML file or in its _BASE_ files; None if none of them has it."""
    with PathManager.open(path) as file:
        tree = yaml.load(file, yaml.BaseLoader)
    value = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    bases = tree.get("_BASE_", [])
    for base in reversed([bases] if isinstance(bases, str) else bases):
        if value is None:
            base = os.path.expanduser(base)
            value = as_written(base if "://" in base else os.path.join(os.path.dirname(path), base), key)
    return value


def _nearest(cfg: CfgNode, key: str, prefix: str = "") -> str:
    known = {name.lower(): name for name, _ in items(cfg, prefix)}
    near = difflib.get_close_matches(key.lower(), list(known), n=1, cutoff=0.5)
    return f" Did you mean {known[near[0]]}?" if near else ""


def explain(cfg: CfgNode, error: Exception, source: str) -> ConfigError:
    """The error that says in one sentence what is wrong in a file or on the command line."""
    message = str(error.args[0] if error.args else error)
    if isinstance(error, OSError):  # a _BASE_, or the file itself
        file = "" if error.filename in (None, source) else f"{error.filename}: "
        return ConfigError(f"{source}: {file}{error.strerror or message}.")
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark  # its file may be a _BASE_
        return ConfigError(f"{mark.name}, line {mark.line + 1}: {error.problem}.")
    if isinstance(error, (yaml.YAMLError, UnicodeDecodeError)):
        return ConfigError(f"{source}: it or its _BASE_ is not valid YAML ({' '.join(str(error).split())}).")
    if isinstance(error, (TypeError, AttributeError)):
        return ConfigError(f"{source}: it or its _BASE_ is not a YAML mapping of config keys.")
    if isinstance(error, KeyError) and "Non-existent" in message:  # from yacs, for files of Detectron2's version 1
        key = message.rsplit(" ", 1)[-1]
        return ConfigError(f"{source}: there is no config key {key}.{_nearest(cfg, key)}")
    return ConfigError(f"{source}: {message}")
