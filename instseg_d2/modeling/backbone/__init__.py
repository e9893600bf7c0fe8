"""Backbones in addition to Detectron2's, registered by name."""

from .dilated_resnet import build_dilated_resnet_backbone
from .dla import build_fcos_dla_fpn_backbone
from .fcos_fpn import FPNWithBottomUp, LastLevelP6, build_fcos_resnet_fpn_backbone, freeze_unused_levels
from .resnet import build_backbone, build_resnet, check_in_features
from .swin import SwinBackbone, build_swint_fpn_backbone
from .timm import TimmBackbone, build_fcos_timm_fpn_backbone, build_timm_backbone
from .timm_families import build_cspnet_backbone, build_pyramid_vision_transformer, build_resnet_vd_backbone

__all__ = [
    "FPNWithBottomUp",
    "LastLevelP6",
    "SwinBackbone",
    "TimmBackbone",
    "build_backbone",
    "build_cspnet_backbone",
    "build_dilated_resnet_backbone",
    "build_fcos_dla_fpn_backbone",
    "build_fcos_resnet_fpn_backbone",
    "build_fcos_timm_fpn_backbone",
    "build_pyramid_vision_transformer",
    "build_resnet",
    "build_resnet_vd_backbone",
    "build_swint_fpn_backbone",
    "build_timm_backbone",
    "check_in_features",
    "freeze_unused_levels",
]
