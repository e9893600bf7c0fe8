"""Small layers shared by the methods."""

from .adaptive_average import adaptive_average, make_pools_exportable
from .arguments import check_choice
from .assemble_boxes import assemble_boxes, crop_boxes, crop_nearest, join_boxes
from .deform_conv import DeformConv, SelfOffsetDeformConv, make_block_deformable
from .inference_conv import InferenceConv2d
from .locations import LocationGrid, conv_at_rows, flatten_levels
from .norm import fold_norm, get_norm, untouched_statistics
from .packed_linear import PackedLinear, pack_linears
from .pyramid_pooler import PyramidPooler
from .roi_pooler import TraceablePooler, pool_boxes
from .tower import ConvTower, conv_norm_elu, conv_stack, init_normal

__all__ = [
    "ConvTower",
    "DeformConv",
    "InferenceConv2d",
    "LocationGrid",
    "PackedLinear",
    "PyramidPooler",
    "SelfOffsetDeformConv",
    "TraceablePooler",
    "adaptive_average",
    "assemble_boxes",
    "check_choice",
    "conv_at_rows",
    "conv_norm_elu",
    "conv_stack",
    "crop_boxes",
    "crop_nearest",
    "flatten_levels",
    "fold_norm",
    "get_norm",
    "init_normal",
    "join_boxes",
    "make_block_deformable",
    "make_pools_exportable",
    "pack_linears",
    "pool_boxes",
    "untouched_statistics",
]
