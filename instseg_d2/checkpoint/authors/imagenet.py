"""
Converts the names of classification networks to our backbones': torchvision's ResNets, and timm's and PVTv2's networks.
"""

import re

from .renaming import StateDict, renamed

_PVT_STAGES = (1, 2, 3, 4)
# Names of timm and of PVTv2's authors -> names in a `TimmBackbone`.
_TIMM_RULES = (
    # ResNet-D, deformable or not
    (r"^(layer\d\.\d+)\.conv2_offset\.", r"net.\1.conv2.offset."),
    (r"^(conv1\.\d|bn1|layer\d)\.", r"net.\1."),
    # CSPDarkNet, DarkNet
    (r"^stem\.conv1\.(conv|bn)\.", r"net.stem_conv1.\1."),
    (r"^stages\.(\d)\.", r"net.stages_\1."),
    # DLA
    (r"^(base_layer|level\d)\.", r"net.\1."),
    # PVTv2
    (r"^patch_embed1\.", "net.patch_embed."),
    *((rf"^patch_embed{n}\.", f"net.stages_{n - 1}.downsample.") for n in _PVT_STAGES),
    *((rf"^norm{n}\.", f"net.stages_{n - 1}.norm.") for n in _PVT_STAGES),
    *((rf"^block{n}\.(\d+\.mlp\.dwconv)\.dwconv\.", rf"net.stages_{n - 1}.blocks.\1.") for n in _PVT_STAGES),
    *((rf"^block{n}\.", f"net.stages_{n - 1}.blocks.") for n in _PVT_STAGES),
)
# torchvision's ResNet -> Detectron2's; applied one after the other.
_TORCHVISION_STEPS = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
_MARKS = ("layer1.0.conv1.weight", "stem.conv1.conv.weight", "patch_embed1.proj.weight", "base_layer.0.weight")
# Projections in DLA-34's deeper trees that the authors store but never use.
DLA_UNUSED = re.compile(r"level[34]\.project\.")
_LEFT_OUT = re.compile(rf"(fc|head)\.|.*\.num_batches_tracked$|{DLA_UNUSED.pattern}")


def timm_name(key: str) -> str:
    """The name of a parameter in our `TimmBackbone`; unchanged if it belongs to another backbone."""
    return renamed(key, _TIMM_RULES)


def _torchvision_name(key: str) -> str:
    for pattern, replacement in _TORCHVISION_STEPS:
        key = re.sub(pattern, replacement, key)
    return key


def is_classifier(state_dict: StateDict) -> bool:
    """Whether these are the weights of such a classification network, with names without a prefix."""
    return any(mark in state_dict for mark in _MARKS)


def convert_classifier(state_dict: StateDict) -> StateDict:
    """
    Remove the classification layer and the norms' step counters, and use our backbones' names without their prefix in
    the model; Detectron2 matches such names by their endings.
    """
    ours = _torchvision_name if "conv1.weight" in state_dict else timm_name
    return {ours(key): value for key, value in state_dict.items() if not _LEFT_OUT.match(key)}
