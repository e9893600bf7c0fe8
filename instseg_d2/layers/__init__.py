"""Small modules that several methods share."""

from .adaptive_average import adaptive_average, exportable_pools
from .assemble_boxes import assemble_boxes, crop_boxes, crop_nearest
from .convolved_linear import ConvolvedLinear
from .deform_conv import DeformConv, SelfOffsetDeformConv, make_block_deformable
from .locations import LocationGrid, conv_at_rows, flatten_levels
from .norm import get_norm
from .tower import ConvTower

__all__ = [
    "ConvTower",
    "ConvolvedLinear",
    "DeformConv",
    "LocationGrid",
    "SelfOffsetDeformConv",
    "adaptive_average",
    "assemble_boxes",
    "conv_at_rows",
    "crop_boxes",
    "crop_nearest",
    "exportable_pools",
    "flatten_levels",
    "get_norm",
    "make_block_deformable",
]
