"""FPN with the extra levels of FCOS: P6 and P7 come from P5, or those above another last level from that."""

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import nn

from ...config import ConfigError
from .resnet import build_resnet


class LastLevelP6(nn.Module):
    """One 3x3 stride-2 convolution from P5, or another last level ``in_feature``, to the next one."""

    num_levels = 1

    def __init__(self, channels: int, in_feature: str):
        super().__init__()
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        weight_init.c2_xavier_fill(self.p6)

    def forward(self, p5: torch.Tensor) -> list:
        """p5 (N, C, H, W) -> [(N, C, ceil(H/2), ceil(W/2))]."""
        return [self.p6(p5)]


class FPNWithBottomUp(FPN):
    """Detectron2's FPN that also returns the maps of its bottom-up network (res3, ..., under their own names)."""

    def forward(self, x: torch.Tensor) -> dict:
        """x (N, C, H, W) -> name -> (N, C, H/stride, W/stride)."""
        captured = {}
        hook = self.bottom_up.register_forward_hook(lambda module, inputs, maps: captured.update(maps))
        try:
            pyramid = super().forward(x)
        finally:
            hook.remove()
        return {**captured, **pyramid}

    def output_shape(self) -> dict:
        return {**self.bottom_up.output_shape(), **super().output_shape()}


def build_fcos_fpn(cfg, bottom_up) -> FPN:
    """The FPN over a bottom-up network, with MODEL.FCOS.TOP_LEVELS levels above its last one, such as P5."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    top_levels = cfg.MODEL.FCOS.TOP_LEVELS
    if top_levels not in (0, 1, 2):
        raise ConfigError(f"MODEL.FCOS.TOP_LEVELS is {top_levels}; it must be 0, 1 (P6) or 2 (P6 and P7).")
    shapes = bottom_up.output_shape()
    strides = [shapes[name].stride for name in cfg.MODEL.FPN.IN_FEATURES]
    last = f"p{max(strides).bit_length() - 1}"
    top_block = None
    if top_levels:
        top_block = LastLevelP6(channels, last) if top_levels == 1 else LastLevelP6P7(channels, channels, last)
    wants_bottom_up = any(name in shapes for name in cfg.MODEL.BASIS_MODULE.IN_FEATURES)
    return (FPNWithBottomUp if wants_bottom_up else FPN)(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet-FPN with P6 and P7 from P5 (AdelaiDet's builder name)."""
    return build_fcos_fpn(cfg, build_resnet(cfg, input_shape))
