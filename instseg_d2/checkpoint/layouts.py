"""Finds the weights in the content of a file, and removes the prefixes of wrapping modules."""

import re
from collections import Counter
from collections.abc import Collection

import numpy as np
import torch
from torch import nn

from ..errors import CheckpointError
from .pickles import ARRAY_CODES

__all__ = ["find_weights", "plain_names", "strip_owner"]

# Keys of weights in a file. If a file has several, the first in this list is used: averages (EMA) come last.
PLACES = (
    "model", "state_dict", "model_state_dict", "model_state", "module", "net", "network", "params", "weights",
    "model_ema", "ema_model", "ema", "model_ema_state_dict", "ema_state_dict", "state_dict_ema", "params_ema",
)  # fmt: skip
_TENSORS = (torch.Tensor, np.ndarray, np.generic)
# torch.compile, FSDP and activation checkpointing prefix any part of a name; parallel and Lightning modules, the start.
_INNER = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_OUTER = re.compile(r"^(?:(?:module|model)\.)+")


def find_weights(path: str, data: dict) -> tuple[dict, str]:
    """
    Find the names and tensors in the content of the file ``path``: the dict itself, a dict below the keys of `PLACES`,
    or the only dict of tensors in it.

    Returns:
        (weights, a note for the user on where they were found, or "")

    Raises:
        CheckpointError: there are none or several, or not all values are tensors.
    """
    notes, sets = [], []
    for _ in range(8):  # levels; a crafted file may nest forever
        # Modules in a trusted file are replaced by their weights.
        data = {key: dict(x.state_dict()) if isinstance(x, nn.Module) else x for key, x in data.items()}
        dicts = {key: value for key, value in data.items() if isinstance(value, dict)}
        sets = [key for key, x in dicts.items() if x and all(isinstance(item, _TENSORS) for item in x.values())]
        tensors = [value for value in data.values() if isinstance(value, _TENSORS)]
        place, *others = [place for place in PLACES if place in dicts] or [None]
        if place is None:
            if any(value.ndim for value in tensors) or (tensors and not sets):
                weights = {name: _weight(path, name, value) for name, value in data.items()}
                return weights, f"{path}: {' and '.join(notes)}." if notes else ""
            if len(sets) != 1:
                break
            place = sets[0]
        if others:
            notes.append(f"its {place} is loaded, not its {', '.join(others)}")
        elif place not in ("model", "state_dict", "model_state"):
            notes.append(f"its {place} is loaded")
        data = dicts[place]
    raise CheckpointError(f"{path} contains {_describe_content(data, sets)}.")


def _describe_content(data: dict, sets: list) -> str:
    if sets:
        return f"several sets of weights ({', '.join(map(str, sets))}): save the one you want in a separate file"
    names = ", ".join(map(str, list(data)[:6])) + (", ..." if len(data) > 6 else "")
    if "param_groups" in data or any(str(key).startswith("optim") for key in data):
        return f"the state of an optimiser, but no weights ({names}): use the file of the model"
    return f"no weights{f', only {names}' if names else ''}"


def _weight(path: str, name: str, value):
    """A tensor or an array of numbers; NumPy scalars become arrays without dimensions."""
    if not isinstance(name, str):
        raise CheckpointError(f"{path} has no state dict: the name {name!r} is not text.")
    if isinstance(value, torch.Tensor):
        return value
    if not isinstance(value, (np.ndarray, np.generic)):
        raise CheckpointError(f"{path} has no state dict: {name} is not a tensor.")
    if value.dtype.str[1:] not in ARRAY_CODES:
        raise CheckpointError(f"{path} has no state dict: {name} is an array of {value.dtype}, not of numbers.")
    return np.asarray(value)


def plain_names(path: str, state: dict, known: Collection[str] = ()) -> dict:
    """
    Remove the prefixes that DataParallel, torch.compile, FSDP, Lightning and similar wrappers put before all or some
    names: ``module.``, ``_orig_mod.``, ``model.``.

    Args:
        path: the file, named in errors.
        known: names that are kept unchanged.

    Raises:
        CheckpointError: two names become the same.
    """
    plain, before = {}, {}
    for name, value in state.items():
        short = name if name in known else _OUTER.sub("", _INNER.sub("", name))
        if short in plain:
            raise CheckpointError(f"{path} has {short} twice, as {before[short]} and {name}: remove one of them.")
        plain[short], before[short] = value, name
    return plain


def strip_owner(state: dict, known: Collection[str]) -> dict:
    """
    If no name is known, remove the first part of a name (``detector.`` of a Lightning module) whose removal makes the
    most names known; otherwise return the state dict unchanged.
    """
    if any(name in known for name in state):
        return state
    parts = [name.partition(".") for name in state]
    found = Counter(first for first, _, rest in parts if rest in known).most_common(2)
    if not found or (len(found) == 2 and found[0][1] == found[1][1]):
        return state
    first = found[0][0] + "."
    return {name[len(first) :] if name.startswith(first) else name: value for name, value in state.items()}
