"""Operators: compiled if the package was built with its extension, otherwise in plain PyTorch."""

from . import reference
from .assemble_instances import assemble_instances
from .blend_masks import blend_masks
from .dynamic_attention import dynamic_attention
from .extension import has_extension
from .mask_prob import grown_windows, mask_prob, window_offsets

__all__ = [
    "assemble_instances",
    "blend_masks",
    "dynamic_attention",
    "grown_windows",
    "has_extension",
    "mask_prob",
    "reference",
    "window_offsets",
]
