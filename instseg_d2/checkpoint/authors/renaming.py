"""Renaming by rules: what the converters share."""

import re

import torch

StateDict = dict[str, torch.Tensor]


def renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    """The key after the first rule that fits."""
    for pattern, replacement in rules:
        name, count = re.subn(pattern, replacement, key)
        if count:
            return name
    return key
