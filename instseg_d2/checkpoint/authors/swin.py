"""Converts the names of the authors' Swin Transformers for classification."""

import re

from .renaming import StateDict, renamed

_BOTTOM_UP = "backbone.bottom_up."
# timm assigns a patch merging to the stage that follows it, the authors to the stage before it.
_SWIN_RULES = (
    (r"^patch_embed\.", r"net.patch_embed."),
    *((rf"^layers\.{i}\.downsample\.", f"net.layers_{i + 1}.downsample.") for i in range(3)),
    (r"^layers\.(\d)\.", r"net.layers_\1."),
    *((rf"^norm{i}\.", f"norms.stage{i + 2}.") for i in range(4)),
)
_SWIN_UNUSED = re.compile(r"(norm|head)\.|.*\.(relative_position_index|attn_mask)$")
SWIN_BLOCK = "layers.0.blocks.0.attn."


def convert_swin(state_dict: StateDict) -> StateDict:
    """Convert a classification Swin Transformer to the bottom-up network of an FPN, without head and last norm."""
    return {
        _BOTTOM_UP + renamed(key, _SWIN_RULES): value
        for key, value in state_dict.items()
        if not _SWIN_UNUSED.match(key)
    }
