"""Backbones beyond Detectron2's own, registered by name."""

from .fcos_fpn import FPNWithBottomUp, LastLevelP6, build_fcos_resnet_fpn_backbone
from .resnet import build_backbone, build_resnet
from .sparseinst import build_cspnet_backbone, build_pyramid_vision_transformer, build_resnet_vd_backbone
from .timm import TimmBackbone, build_timm_backbone

__all__ = [
    "FPNWithBottomUp",
    "LastLevelP6",
    "TimmBackbone",
    "build_backbone",
    "build_cspnet_backbone",
    "build_fcos_resnet_fpn_backbone",
    "build_pyramid_vision_transformer",
    "build_resnet",
    "build_resnet_vd_backbone",
    "build_timm_backbone",
]
