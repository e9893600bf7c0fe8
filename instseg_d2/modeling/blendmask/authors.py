"""Parameter names of FCOS and BlendMask in AdelaiDet."""

import re

from ...checkpoint.authors.imagenet import DLA_UNUSED
from ...checkpoint.authors.renaming import StateDict, renamed, tower_blocks

FCOS_HEAD = "proposal_generator.fcos_head."
_OURS = "proposal_generator.head."
_TOWERS = {"share_tower": _OURS + "shared_tower", "cls_tower": _OURS + "class_tower", "bbox_tower": _OURS + "box_tower"}
_BOTTOM_UP = "backbone.bottom_up."
# (AdelaiDet's name, our name). AdelaiDet's towers are numbered Sequentials: see tower_blocks.
_ADELAIDET_RULES = (
    (r"^backbone\.bottom_up\.(base_layer|level\d)\.", r"backbone.bottom_up.net.\1."),
    (r"^proposal_generator\.fcos_head\.cls_logits\.", "proposal_generator.head.class_logits."),
    (r"^proposal_generator\.fcos_head\.bbox_pred\.", "proposal_generator.head.box_distances."),
    (
        r"^proposal_generator\.fcos_head\.(?:ctrness|centerness|iou_overlap)\.",
        "proposal_generator.head.quality_logits.",
    ),
    (r"^proposal_generator\.fcos_head\.scales\.(\d+)\.scale$", r"proposal_generator.head.scales.\1"),
    (r"^basis_module\.refine\.(\d+)\.0\.", r"basis_module.refine.\1."),
    (r"^basis_module\.refine\.(\d+)\.1\.", r"basis_module.refine.\1.norm."),
    (r"^basis_module\.seg_head\.0\.", "basis_module.semantic_head.0."),
    (r"^basis_module\.seg_head\.1\.", "basis_module.semantic_head.0.norm."),
    (r"^basis_module\.seg_head\.3\.", "basis_module.semantic_head.1."),
    (r"^basis_module\.seg_head\.4\.", "basis_module.semantic_head.1.norm."),
    (r"^basis_module\.seg_head\.6\.", "basis_module.semantic_head.2."),
    (r"^panoptic_module\.", "sem_seg_head."),
)


def _proto_net_tower(state_dict: StateDict) -> dict[str, str]:
    """Names in ProtoNet's tower: convolutions, upsampling (no parameters), one convolution, the 1x1 predictor."""
    pattern = re.compile(r"basis_module\.tower\.(\d+)\.(?:([01])\.)?(\w+)$")
    matches = [(key, match) for key in state_dict if (match := pattern.match(key))]
    last = max((int(match[1]) for _, match in matches if match[2] is None), default=-1) - 1  # before the predictor
    names = {}
    for key, match in matches:
        index, part, name = int(match[1]), match[2], match[3]
        if part is None:
            names[key] = f"basis_module.predictor.{name}"
            continue
        module = "upsampled_conv" if index == last else f"tower.{index}"
        names[key] = f"basis_module.{module}.{'norm.' if part == '1' else ''}{name}"
    return names


def convert_adelaidet(state_dict: StateDict) -> StateDict:
    """Convert AdelaiDet's state dict of FCOS or BlendMask to our names."""
    names = {**tower_blocks(state_dict, FCOS_HEAD, _TOWERS), **_proto_net_tower(state_dict)}
    converted = {}
    for key, value in state_dict.items():
        if key.startswith(_BOTTOM_UP) and DLA_UNUSED.match(key, len(_BOTTOM_UP)):
            continue
        name = names[key] if key in names else renamed(key, _ADELAIDET_RULES)
        converted[name] = value
    return converted
