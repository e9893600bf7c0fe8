"""
FPN with the extra levels of FCOS: P6 and P7 from P5, or the next levels above another last level.

N images, C channels, h x w cells of a map, H x W pixels.
"""

import threading
from collections.abc import Iterable

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN
from torch import nn

from .resnet import build_resnet


class HalvingConv(nn.Conv2d):
    """
    3x3 convolution with stride 2 and padding 1.

    On a map with a single column, only the middle column of the kernel is used: oneDNN (3.10) leaves the bfloat16
    gradient of the other two uninitialised.
    """

    def __init__(self, channels: int):
        super().__init__(channels, channels, 3, stride=2, padding=1)
        weight_init.c2_xavier_fill(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> (N, C, ceil(h / 2), ceil(w / 2))."""
        if x.shape[-1] > 1:
            return super().forward(x)
        return F.conv2d(x, self.weight[..., 1:2], self.bias, stride=2, padding=(1, 0))


class LastLevelP6(nn.Module):
    """The level above P5, or above another last level ``in_feature``, from one convolution."""

    num_levels = 1

    def __init__(self, channels: int, in_feature: str):
        super().__init__()
        self.in_feature = in_feature
        self.p6 = HalvingConv(channels)

    def forward(self, p5: torch.Tensor) -> list:
        """p5 (N, C, h, w) -> [(N, C, ceil(h / 2), ceil(w / 2))]."""
        return [self.p6(p5)]


class LastLevelP6P7(LastLevelP6):
    """The two levels above P5, or above another last level ``in_feature``."""

    num_levels = 2

    def __init__(self, channels: int, in_feature: str):
        super().__init__(channels, in_feature)
        self.p7 = HalvingConv(channels)

    def forward(self, p5: torch.Tensor) -> list:
        """p5 (N, C, h, w) -> two maps, each half the size of the one before."""
        p6 = self.p6(p5)
        return [p6, self.p7(F.relu(p6))]


class PaddedFPN(FPN):
    """Detectron2's FPN, which also respects the size divisibility of its bottom-up network."""

    @property
    def size_divisibility(self) -> int:
        return max(super().size_divisibility, self.bottom_up.size_divisibility)


class FPNWithBottomUp(PaddedFPN):
    """Detectron2's FPN, which also returns the maps of its bottom-up network (res3, ...)."""

    def forward(self, x: torch.Tensor) -> dict:
        """x (N, 3, H, W) -> name -> (N, C, H / stride, W / stride)."""
        captured, thread = {}, threading.get_ident()

        def capture(module, inputs, maps):
            if threading.get_ident() == thread:  # another thread may be running the same network
                captured.update(maps)

        hook = self.bottom_up.register_forward_hook(capture)
        try:
            pyramid = super().forward(x)
        finally:
            hook.remove()
        return {**captured, **pyramid}

    def output_shape(self) -> dict:
        return {**self.bottom_up.output_shape(), **super().output_shape()}


def build_fcos_fpn(cfg, bottom_up) -> FPN:
    """Build an FPN on a bottom-up network, with MODEL.FCOS.TOP_LEVELS levels above its last one, such as P5."""
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    top_levels = cfg.MODEL.FCOS.TOP_LEVELS
    shapes = bottom_up.output_shape()
    strides = [shapes[name].stride for name in cfg.MODEL.FPN.IN_FEATURES]
    last = f"p{max(strides).bit_length() - 1}"
    top_block = None
    if top_levels:
        top_block = (LastLevelP6 if top_levels == 1 else LastLevelP6P7)(channels, last)
    wants_bottom_up = any(name in shapes for name in cfg.MODEL.BASIS_MODULE.IN_FEATURES)
    return (FPNWithBottomUp if wants_bottom_up else PaddedFPN)(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def freeze_unused_levels(backbone: nn.Module, names: Iterable[str]) -> None:
    """
    Freeze the parts of an FPN that only unused levels need, because DDP needs a gradient for every trained parameter.
    Other backbones are not changed.

    Args:
        names: names of the maps in use; those that are no pyramid levels (res3) are ignored.
    """
    used = sorted(int(name[1:]) for name in names if name.startswith("p"))
    if not isinstance(backbone, FPN) or not used:
        return
    levels = sorted(int(name[1:]) for name in backbone.output_shape() if name.startswith("p"))
    for level in levels:
        unused = [f"fpn_output{level}"] * (level not in used) + [f"fpn_lateral{level}"] * (level < used[0])
        for part in unused:
            getattr(backbone, part, nn.Identity()).requires_grad_(False)
    if backbone.top_block is not None:  # its layers are always called p6 and p7
        for level, layer in zip(levels[-backbone.top_block.num_levels :], backbone.top_block.children()):
            if level > used[-1]:
                layer.requires_grad_(False)


@BACKBONE_REGISTRY.register()
def build_fcos_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """ResNet-FPN with P6 and P7 from P5 (AdelaiDet's name of the builder)."""
    return build_fcos_fpn(cfg, build_resnet(cfg, input_shape))
