"""Renames keys by rules, for all converters."""

import re

import torch

StateDict = dict[str, torch.Tensor]


def renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str:
    """The key after applying the first rule that matches."""
    for pattern, replacement in rules:
        name, count = re.subn(pattern, replacement, key)
        if count:
            return name
    return key


def tower_blocks(state_dict: StateDict, head: str, towers: dict[str, str]) -> dict[str, str]:
    """
    Map the names of towers that are one numbered Sequential to names in blocks.

    Every block is a convolution (``i.weight``, or ``i.conv`` with ``i.offset`` if deformable), possibly a norm
    (``j.weight``, or ``j.level.weight``), and a ReLU without parameters.

    Args:
        head: the prefix of the towers' names.
        towers: the authors' name of a tower -> ours.
    """
    names = {}
    pattern = re.compile(re.escape(head) + r"(\w+_tower)\.(\d+)\.(.+)$")
    found: dict[str, dict[int, list]] = {}
    for key in state_dict:
        match = pattern.match(key)
        if match and match[1] in towers:
            found.setdefault(match[1], {}).setdefault(int(match[2]), []).append((match[3], key))
    for tower, entries in found.items():
        # A block has three layers with a norm, otherwise two: the convolutions are at 0, 3, 6 or at 0, 2, 4.
        places = 3 if any(index % 2 for index in entries) else 2
        for index, parts in entries.items():
            block, place = divmod(index, places)
            rest = dict(parts)
            is_conv, deformable = place == 0, "conv.weight" in rest
            prefix = f"{towers[tower]}.blocks.{block}."
            for name, key in rest.items():
                if deformable:
                    names[key] = prefix + name
                elif is_conv:
                    names[key] = f"{prefix}conv.{name}"
                elif name[0].isdigit():
                    names[key] = f"{prefix}level_norms.{name}"
                else:
                    names[key] = f"{prefix}norm.{name}"
    return names
