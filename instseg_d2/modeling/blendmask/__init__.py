"""BlendMask (Chen et al., CVPR 2020, arXiv 2001.00309)."""

from .basis_module import BASIS_MODULE_REGISTRY, DeepLabV3Plus, ProtoNet, build_basis_module
from .blender import Blender
from .blendmask import BlendMask
from .mask_head import BlendMaskHead

__all__ = [
    "BASIS_MODULE_REGISTRY",
    "BlendMask",
    "BlendMaskHead",
    "Blender",
    "DeepLabV3Plus",
    "ProtoNet",
    "build_basis_module",
]
