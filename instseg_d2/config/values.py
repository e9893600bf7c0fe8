"""Rules for the values of config keys, and the error for a broken one."""

import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Optional

from detectron2.config import CfgNode

from ..errors import ConfigError

__all__ = [
    "Rule",
    "above",
    "at_least",
    "below_one",
    "between",
    "check_types",
    "check_values",
    "detectron2_norm",
    "each",
    "get_value",
    "items",
    "norm",
    "one_of",
    "only",
    "or_none",
    "probability",
    "require",
    "section",
    "whole",
    "words",
]


class Rule(NamedTuple):
    """A test for a value, and what it requires, in words that follow "it must be"."""

    text: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _listed(values: Sequence) -> str:
    shown = ["empty" if value == "" else str(value) for value in values]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def one_of(*values) -> Rule:
    """One of these values; "" is shown as "empty"."""

    def holds(value) -> bool:
        return any(value == x and isinstance(value, bool) == isinstance(x, bool) for x in values)

    return Rule(_listed(values), holds)


def only(value: Any, reason: str) -> Rule:
    """A key that has only one allowed value."""
    return Rule(f"{_listed([value])} ({reason})", lambda given: given == value)


def at_least(low: float) -> Rule:
    """A finite number of at least ``low``."""
    return Rule(f"at least {low}", lambda value: _is_number(value) and low <= value < math.inf)


def whole(low: int) -> Rule:
    """An integer of at least ``low``. For list items; the type of single values is checked by `check_types`."""
    return Rule(f"a whole number of at least {low}", lambda value: type(value) is int and value >= low)


def above(low: float) -> Rule:
    """A finite number above ``low``."""
    return Rule(f"above {low}", lambda value: _is_number(value) and low < value < math.inf)


def between(low: float, high: float) -> Rule:
    """A number from ``low`` to ``high``, inclusive."""
    return Rule(f"from {low} to {high}", lambda value: _is_number(value) and low <= value <= high)


probability = Rule("above 0 and below 1", lambda value: _is_number(value) and 0 < value < 1)
below_one = Rule("from 0 to below 1", lambda value: _is_number(value) and 0 <= value < 1)


def or_none(rule: Rule) -> Rule:
    """None, or a value that follows ``rule``."""
    return Rule(f"{rule.text}, or None", lambda value: value is None or rule.holds(value))


def each(rule: Rule, count: Optional[int] = None, min_length: int = 1) -> Rule:
    """A list or tuple of ``count`` values, or of ``min_length`` or more, that all follow ``rule``."""
    length = f"{count} values" if count else "one or more values" if min_length == 1 else "values"

    def holds(values) -> bool:
        if not isinstance(values, (list, tuple)) or not all(map(rule.holds, values)):
            return False
        return len(values) == count if count else len(values) >= min_length

    return Rule(f"{length}, each {rule.text}", holds)


def words(min_length: int = 0) -> Rule:
    """A list or tuple of names."""
    return each(Rule("a name", lambda value: isinstance(value, str) and value != ""), min_length=min_length)


_NORMS = ("GN", "BN", "SyncBN", "FrozenBN", "LN", "")
# Detectron2's names for other implementations of these norms.
_MORE_NORMS = ("nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", None)
detectron2_norm = Rule(_listed(_NORMS), lambda value: value in (*_NORMS, *_MORE_NORMS))
# With AdelaiDet's names, which the modules of this package also accept, see layers/norm.py.
norm = Rule(_listed(_NORMS), lambda value: value in (*_NORMS, *_MORE_NORMS, "NaiveGN", "NaiveSyncBN", "none"))


def section(path: str, **rules: Rule) -> dict[str, Rule]:
    """The rules of the keys of one section, under their full names."""
    return {f"{path}.{name}": rule for name, rule in rules.items()}


def get_value(cfg: CfgNode, key: str) -> Any:
    """
    The value of a key by its full name.

    Raises:
        KeyError: there is no such key.
    """
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def items(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every key by its full name, including sections, with its value."""
    for name, value in cfg.items():
        yield prefix + name, value
        if isinstance(value, CfgNode):
            yield from items(value, f"{prefix}{name}.")


def check_values(cfg: CfgNode, rules: Mapping[str, Rule]) -> None:
    """
    Check each value against its rule; keys that the config lacks are skipped.

    Raises:
        ConfigError: a value breaks its rule; the message names the key, the value and what is allowed.
    """
    for key, rule in rules.items():
        try:
            value = get_value(cfg, key)
        except KeyError:
            continue
        require(rule.holds(value), f"{key} is {value!r}; it must be {rule.text}.")


def require(good: bool, message: str) -> None:
    """
    Raises:
        ConfigError: ``good`` is false; with this message.
    """
    if not good:
        raise ConfigError(message)


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text", list: "several values"}


def check_types(cfg: CfgNode, defaults: CfgNode, prefix: str = "") -> None:
    """
    Check the type of every value. None is allowed for texts and floats, and where it is the default.

    Args:
        defaults: a config with every known key and values of the right types.

    Raises:
        ConfigError: a type is wrong; the message names the key, the value and the right type.
    """
    for name, default in defaults.items():
        key, value = f"{prefix}{name}", cfg.get(name, default)
        require(
            isinstance(value, CfgNode) == isinstance(default, CfgNode),
            f"{key} is {'a section, not a value' if isinstance(default, CfgNode) else 'a value, not a section'}.",
        )
        if isinstance(default, CfgNode):
            check_types(value, default, f"{key}.")
        else:
            kind = list if isinstance(default, tuple) else type(default)
            require(_fits(value, kind), f"{key} is {value!r}; it must be {_KINDS.get(kind)}.")


def _fits(value: Any, kind: type) -> bool:
    if value is None or kind is type(None):  # e.g. SOLVER.WEIGHT_DECAY_NORM
        return kind in (str, float, type(None))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind in (int, float):
        return isinstance(value, numbers.Integral if kind is int else numbers.Real)
    return isinstance(value, str if kind is str else (list, tuple))
