"""Parameter names of EmbedMask's release, all three versions, in the layout of maskrcnn-benchmark."""

import re

import torch

from ...checkpoint.authors.renaming import StateDict, renamed, tower_blocks

_HEAD = "rpn.head."
MASK_TOWER = _HEAD + "mask_tower."
_TOWERS = {
    "cls_tower": "proposal_generator.head.class_tower",
    "bbox_tower": "proposal_generator.head.box_tower",
    "mask_tower": "pixel_head.tower",
}
_RULES = (
    (r"^rpn\.head\.cls_logits\.", "proposal_generator.head.class_logits."),
    (r"^rpn\.head\.bbox_pred\.", "proposal_generator.head.box_distances."),
    (r"^rpn\.head\.centerness\.", "proposal_generator.head.quality_logits."),
    (r"^rpn\.head\.scales\.(\d+)\.scale$", r"proposal_generator.head.scales.\1"),
    (r"^rpn\.head\.margin_scales\.(\d+)\.scale$", r"proposal_head.margin_scales.\1"),
    (r"^rpn\.head\.position_scale\.scale$", "position_scale"),
    (r"^rpn\.head\.proposal_embed_pred\.", "proposal_head.embedding."),
    (r"^rpn\.head\.proposal_margin_pred\.", "proposal_head.margin."),
    (r"^rpn\.head\.pixel_embed_pred\.", "pixel_head.embedding."),
    (r"^backbone\.body\.stem\.conv1\.", "backbone.bottom_up.stem.conv1."),
    (r"^backbone\.body\.stem\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
    (r"^backbone\.fpn\.top_blocks\.", "backbone.top_block."),
)
_BLOCK = re.compile(r"^backbone\.body\.layer(\d)\.(\d+)\.(downsample\.)?(conv|bn)?(\d)\.(.+)$")
_FPN = re.compile(r"^backbone\.fpn\.fpn_(inner|layer)(\d)\.(.+)$")
# Detectron2 adds it to the variance of a frozen batch norm, the authors' code does not.
_EPSILON = 1e-5


def _our_name(key: str) -> str:
    if match := _BLOCK.match(key):
        layer, block, downsample, kind, number, name = match.groups()
        module = "shortcut" if downsample else f"conv{number}"
        norm = "norm." if kind == "bn" or (downsample and number == "1") else ""
        return f"backbone.bottom_up.res{int(layer) + 1}.{block}.{module}.{norm}{name}"
    if match := _FPN.match(key):
        kind, level, name = match.groups()
        return f"backbone.fpn_{'lateral' if kind == 'inner' else 'output'}{int(level) + 1}.{name}"
    return renamed(key, _RULES)


def _joined_embeddings(state_dict: StateDict) -> StateDict:
    """Join the convolutions of the spatial and the other dimensions (v2, v3); one without the other stays as it is."""
    halves = {key: key.replace("_spatial_", "_other_") for key in state_dict if "_spatial_embed_pred." in key}
    halves = {spatial: other for spatial, other in halves.items() if other in state_dict}
    joined = {}
    for key, value in state_dict.items():
        if key in halves:
            joined[key.replace("_spatial_", "_")] = torch.cat([value, state_dict[halves[key]]])
        elif key not in halves.values():
            joined[key] = value
    return joined


def convert_embedmask(state_dict: StateDict) -> StateDict:
    """
    Convert the state dict of EmbedMask's release to our names, and subtract Detectron2's epsilon from the variances.

    An incomplete file is converted, too, so that the load report can name what is missing.
    """
    state_dict = _joined_embeddings(state_dict)
    towers = tower_blocks(state_dict, _HEAD, _TOWERS)
    converted = {}
    for key, value in state_dict.items():
        name = towers.get(key) or _our_name(key)
        if name.startswith("proposal_head.margin.weight") and value.shape[-1] == 1:  # v1: a linear map of the box
            name, value = "proposal_head.box_margin.weight", value.flatten(1)
        if key.startswith("backbone.body.") and key.endswith("running_var"):
            value = value - _EPSILON
        converted[name] = value
    if "proposal_head.box_margin.weight" in converted and "proposal_head.margin.bias" in converted:
        converted["proposal_head.box_margin.bias"] = converted.pop("proposal_head.margin.bias")
    return converted
