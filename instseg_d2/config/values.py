"""Rules for the values of config keys, and the sentence where one is broken."""

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
    """What a value must be, in words that follow "it must be", and the test for it."""

    text: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _listed(values: Sequence) -> str:
    shown = ["empty" if value == "" else str(value) for value in values]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} or {shown[-1]}"


def one_of(*values) -> Rule:
    """One of these values; "" is called empty."""

    def holds(value) -> bool:
        return any(value == x and isinstance(value, bool) == isinstance(x, bool) for x in values)

    return Rule(_listed(values), holds)


def only(value: Any, reason: str) -> Rule:
    """A key that files may set, but to one value alone."""
    return Rule(f"{_listed([value])} ({reason})", lambda given: given == value)


def at_least(low: float) -> Rule:
    """A finite number from ``low`` on."""
    return Rule(f"at least {low}", lambda value: _is_number(value) and low <= value < math.inf)


def whole(low: int) -> Rule:
    """A whole number from ``low`` on, for the values of a list: single ones have the type of their default."""
    return Rule(f"a whole number of at least {low}", lambda value: type(value) is int and value >= low)


def above(low: float) -> Rule:
    """A finite number above ``low``."""
    return Rule(f"above {low}", lambda value: _is_number(value) and low < value < math.inf)


def between(low: float, high: float) -> Rule:
    """A number from ``low`` to ``high``, both included."""
    return Rule(f"from {low} to {high}", lambda value: _is_number(value) and low <= value <= high)


probability = Rule("above 0 and below 1", lambda value: _is_number(value) and 0 < value < 1)
below_one = Rule("from 0 to below 1", lambda value: _is_number(value) and 0 <= value < 1)


def or_none(rule: Rule) -> Rule:
    """None, or what ``rule`` says."""
    return Rule(f"{rule.text}, or None", lambda value: value is None or rule.holds(value))


def each(rule: Rule, count: Optional[int] = None, fewest: int = 1) -> Rule:
    """A list or tuple of ``count`` values, or of ``fewest`` or more, that all follow ``rule``."""
    length = f"{count} values" if count else "one or more values" if fewest == 1 else "values"

    def holds(values) -> bool:
        if not isinstance(values, (list, tuple)) or not all(map(rule.holds, values)):
            return False
        return len(values) == count if count else len(values) >= fewest

    return Rule(f"{length}, each {rule.text}", holds)


def words(fewest: int = 0) -> Rule:
    """A list or tuple of names."""
    return each(Rule("a name", lambda value: isinstance(value, str) and value != ""), fewest=fewest)


_NORMS = ("GN", "BN", "SyncBN", "FrozenBN", "LN", "")
# Names that Detectron2 has for other implementations of the same.
_MORE_NORMS = ("nnSyncBN", "naiveSyncBN", "naiveSyncBN_N", None)
detectron2_norm = Rule(_listed(_NORMS), lambda value: value in (*_NORMS, *_MORE_NORMS))
# AdelaiDet's names, which this package's own parts also know, see layers/norm.py.
norm = Rule(_listed(_NORMS), lambda value: value in (*_NORMS, *_MORE_NORMS, "NaiveGN", "NaiveSyncBN", "none"))


def section(path: str, **rules: Rule) -> dict[str, Rule]:
    """The rules of the keys of one section, under their full names."""
    return {f"{path}.{name}": rule for name, rule in rules.items()}


def get_value(cfg: CfgNode, key: str) -> Any:
    """
    The value of a key by its full name.

    Raises:
        KeyError: there is none.
    """
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def items(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The full name of every key, sections too, with its value."""
    for name, value in cfg.items():
        yield prefix + name, value
        if isinstance(value, CfgNode):
            yield from items(value, f"{prefix}{name}.")


def check_values(cfg: CfgNode, rules: Mapping[str, Rule]) -> None:
    """
    Check each value by its rule; keys that the config lacks are passed over.

    Raises:
        ConfigError: it names the key, its value and what would be right.
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
        ConfigError: ``message``, where ``good`` is false.
    """
    if not good:
        raise ConfigError(message)


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text", list: "several values"}


def check_types(cfg: CfgNode, defaults: CfgNode, prefix: str = "") -> None:
    """
    Check the type of every value; None passes for a text, a real number and where it is the default.

    Args:
        defaults: a config of every key that is known, with values of the right types.

    Raises:
        ConfigError: it names the key, its value and what would be right.
    """
    for name, default in defaults.items():
        key, value = f"{prefix}{name}", cfg.get(name, default)
        require(
            isinstance(value, CfgNode) == isinstance(default, CfgNode),
            f"{key} is {'no' if isinstance(default, CfgNode) else 'a'} section of the config.",
        )
        if isinstance(default, CfgNode):
            check_types(value, default, f"{key}.")
        else:
            kind = list if isinstance(default, tuple) else type(default)
            require(_fits(value, kind), f"{key} is {value!r}; it must be {_KINDS.get(kind)}.")


def _fits(value: Any, kind: type) -> bool:
    if value is None or kind is type(None):  # no text, no weight decay of its own, a method's own default
        return kind in (str, float, type(None))
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    if kind in (int, float):
        return isinstance(value, numbers.Integral if kind is int else numbers.Real)
    return isinstance(value, str if kind is str else (list, tuple))
