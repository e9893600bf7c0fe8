"""
The parameter names of the authors' public checkpoints, and ours.

Each method has one converter: state dict with the authors' names -> state dict with ours, all keys covered.
"""

from collections.abc import Callable

from .adelaidet import FCOS_HEAD, convert_adelaidet
from .embedmask import MASK_TOWER, convert_embedmask
from .imagenet import convert_classifier, is_classifier
from .istr import SWIN_BLOCK, convert_istr, convert_swin
from .renaming import StateDict
from .sparseinst import convert_sparseinst
from .vgg import VGG16_LAST_CONV, convert_vgg16

__all__ = [
    "convert_adelaidet",
    "convert_classifier",
    "convert_embedmask",
    "convert_istr",
    "convert_sparseinst",
    "convert_state_dict",
    "convert_swin",
    "convert_vgg16",
    "is_classifier",
]

# A key that only one family of checkpoints has -> its converter.
_FAMILIES: tuple[tuple[str, Callable[[StateDict], StateDict]], ...] = (
    (FCOS_HEAD, convert_adelaidet),
    (MASK_TOWER, convert_embedmask),
    ("encoder.fpn_laterals.", convert_sparseinst),
    ("pos_embeddings.", convert_istr),
    (SWIN_BLOCK, convert_swin),
    (VGG16_LAST_CONV, convert_vgg16),
)


def convert_state_dict(state_dict: StateDict) -> StateDict:
    """The state dict under this package's names; unchanged when it is no checkpoint of the authors."""
    for prefix, convert in _FAMILIES:
        if any(key.startswith(prefix) for key in state_dict):
            return convert(state_dict)
    return state_dict
