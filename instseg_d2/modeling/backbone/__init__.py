"""Backbones beyond Detectron2's own, registered by name."""

from .fcos_fpn import FPNWithBottomUp, LastLevelP6, build_fcos_resnet_fpn_backbone
from .resnet import build_resnet

__all__ = ["FPNWithBottomUp", "LastLevelP6", "build_fcos_resnet_fpn_backbone", "build_resnet"]
