"""Operators: each runs compiled where the package was built with its extension, else in plain PyTorch."""

from . import reference
from .blend_masks import blend_masks
from .extension import has_extension

__all__ = ["blend_masks", "has_extension", "reference"]
