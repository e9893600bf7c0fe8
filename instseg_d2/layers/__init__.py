"""Small modules that several methods share."""

from .deform_conv import DeformConv, SelfOffsetDeformConv, make_block_deformable
from .locations import LocationGrid, conv_at_rows, flatten_levels
from .norm import get_norm
from .tower import ConvTower

__all__ = [
    "ConvTower",
    "DeformConv",
    "LocationGrid",
    "SelfOffsetDeformConv",
    "conv_at_rows",
    "flatten_levels",
    "get_norm",
    "make_block_deformable",
]
