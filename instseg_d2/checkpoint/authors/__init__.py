"""
The parameter names of the authors' public checkpoints, and ours.

A converter takes a state dict with the authors' names and gives one with ours, all keys covered. Those of the methods
stand in their records; here are those of the backbones alone.
"""

from ...methods import methods
from .imagenet import convert_classifier, is_classifier
from .renaming import StateDict
from .swin import SWIN_BLOCK, convert_swin
from .vgg import VGG16_LAST_CONV, convert_vgg16

__all__ = ["convert_classifier", "convert_state_dict", "is_classifier"]

# As of `Method.authors_names`.
_BACKBONES = {SWIN_BLOCK: convert_swin, VGG16_LAST_CONV: convert_vgg16}


def convert_state_dict(state_dict: StateDict) -> StateDict:
    """The state dict under this package's names; unchanged when it is no checkpoint of the authors."""
    families = [*(method.authors_names for method in methods()), _BACKBONES]
    for start, convert in (pair for family in families for pair in family.items()):
        if any(key.startswith(start) for key in state_dict):
            return convert(state_dict)
    return state_dict
