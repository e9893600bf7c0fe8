"""
Converts the parameter names of the authors' public checkpoints to ours.

A converter takes a state dict with the authors' names and returns one with ours, for all keys. The methods' converters
are in their records, those of backbones are here.
"""

from ...methods import methods
from .imagenet import convert_classifier, is_classifier
from .renaming import StateDict
from .swin import SWIN_BLOCK, convert_swin

__all__ = ["convert_classifier", "convert_state_dict", "is_classifier"]


def convert_state_dict(state_dict: StateDict) -> StateDict:
    """The state dict with this package's names; unchanged if it is not from an author's checkpoint."""
    families = [*(method.authors_names for method in methods()), {SWIN_BLOCK: convert_swin}]
    for start, convert in (pair for family in families for pair in family.items()):
        if any(key.startswith(start) for key in state_dict):
            return convert(state_dict)
    return state_dict
