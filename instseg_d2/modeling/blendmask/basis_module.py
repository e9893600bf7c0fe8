"""
Bottom modules of BlendMask, which predict K bases for the whole image. N images, C channels, h x w cells of a map.
"""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ASPP, Conv2d, ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

from ...layers import get_norm
from ..backbone import check_in_features

BASIS_MODULE_REGISTRY = Registry("BASIS_MODULE")
BASIS_MODULE_REGISTRY.__doc__ = """
Modules called with (cfg, input_shape) whose forward maps the backbone's features (name -> (N, C, h, w)) to
bases (N, K, h', w').
"""


def build_basis_module(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The module named by MODEL.BASIS_MODULE.NAME."""
    return BASIS_MODULE_REGISTRY.get(cfg.MODEL.BASIS_MODULE.NAME)(cfg, input_shape)


def conv_norm_relu(in_channels: int, out_channels: int, norm: str, kernel_size: int = 3) -> Conv2d:
    """Convolution (no bias, Kaiming uniform with a = 1), norm, ReLU."""
    conv = Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        padding=kernel_size // 2,
        bias=False,
        norm=get_norm(norm, out_channels),
        activation=F.relu,
    )
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return conv


class BasisModule(nn.Module):
    """
    Base class with the auxiliary semantic head (BlendMask, section 3.2) on the first input map: two 3x3 convolutions,
    always with BN and ReLU, and a 1x1 convolution to classes + 1.
    """

    checkpointed_methods = ("forward", "semantic_loss")

    def __init__(self, *, in_features, in_channels: int, common_stride: int, num_classes: int, loss_on, loss_weight):
        super().__init__()
        self.in_features = list(in_features)
        self.common_stride = common_stride
        self.loss_weight = loss_weight
        self.semantic_head = None
        if loss_on:
            self.semantic_head = nn.Sequential(
                Conv2d(in_channels, 128, 3, padding=1, bias=False, norm=nn.BatchNorm2d(128), activation=F.relu),
                Conv2d(128, 128, 3, padding=1, bias=False, norm=nn.BatchNorm2d(128), activation=F.relu),
                nn.Conv2d(128, num_classes + 1, 1),
            )

    @staticmethod
    def shared_arguments(cfg, input_shape: dict[str, ShapeSpec]) -> dict:
        node = cfg.MODEL.BASIS_MODULE
        check_in_features("MODEL.BASIS_MODULE.IN_FEATURES", node.IN_FEATURES, input_shape)
        stride = input_shape[node.IN_FEATURES[0]].stride
        if any(scale * stride != 2 for scale in cfg.MODEL.BLENDMASK.POOLER_SCALES):  # bases are twice as fine
            raise ValueError(
                f"MODEL.BLENDMASK.POOLER_SCALES is {cfg.MODEL.BLENDMASK.POOLER_SCALES}; bases from "
                f"{node.IN_FEATURES[0]} of stride {stride} need scale {2 / stride:g}."
            )
        if node.LOSS_ON and node.COMMON_STRIDE != stride:  # that of the semantic logits
            raise ValueError(
                f"MODEL.BASIS_MODULE.COMMON_STRIDE is {node.COMMON_STRIDE}; the semantic loss on "
                f"{node.IN_FEATURES[0]} needs its stride, {stride}."
            )
        return {
            "in_features": node.IN_FEATURES,
            "common_stride": node.COMMON_STRIDE,
            "num_classes": node.NUM_CLASSES,
            "loss_on": node.LOSS_ON,
            "loss_weight": node.LOSS_WEIGHT,
        }

    def semantic_loss(self, features: dict[str, torch.Tensor], target: torch.Tensor) -> torch.Tensor:
        """
        Weighted cross-entropy of the semantic head.

        Args:
            features: the backbone's feature maps.
            target: (N, h, w) int64 at the common stride, padding included: class + 1, or 0 for background.
        """
        logits = self.semantic_head(features[self.in_features[0]]).float()
        return F.cross_entropy(logits, target) * self.loss_weight


@BASIS_MODULE_REGISTRY.register()
class ProtoNet(BasisModule):
    """
    The bottom module of all released models: refine the levels, sum them at the finest one, apply a tower and double
    the resolution.
    """

    @configurable
    def __init__(self, *, in_channels: Sequence[int], channels=128, num_convs=3, num_bases=4, norm="SyncBN", **kwargs):
        """
        Args:
            in_channels: channels of each input map, finest first.
            channels: width of the module.
            num_convs: number of 3x3 convolutions in the tower.
            kwargs: see `BasisModule`.
        """
        super().__init__(in_channels=in_channels[0], **kwargs)
        self.refine = nn.ModuleList(conv_norm_relu(c, channels, norm) for c in in_channels)
        self.tower = nn.Sequential(*(conv_norm_relu(channels, channels, norm) for _ in range(num_convs)))
        self.upsampled_conv = conv_norm_relu(channels, channels, norm)
        self.predictor = nn.Conv2d(channels, num_bases, 1)

    @classmethod
    def from_config(cls, cfg, input_shape):
        node = cfg.MODEL.BASIS_MODULE
        return {
            **cls.shared_arguments(cfg, input_shape),
            "in_channels": [input_shape[name].channels for name in node.IN_FEATURES],
            "channels": node.CONVS_DIM,
            "num_convs": node.NUM_CONVS,
            "num_bases": node.NUM_BASES,
            "norm": node.NORM,
        }

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """features: name -> (N, C, h, w) -> bases (N, K, 2 h, 2 w), h x w of the finest input map."""
        x = None
        for name, refine in zip(self.in_features, self.refine):
            level = refine(features[name])
            x = level if x is None else x + F.interpolate(level, x.shape[-2:], mode="bilinear", align_corners=False)
        x = self.tower(x)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.predictor(self.upsampled_conv(x))


@BASIS_MODULE_REGISTRY.register()
class DeepLabV3Plus(BasisModule):
    """
    The bottom module of the paper: a DeepLab V3+ decoder over a low-level and a high-level map (C3, C5 or P3, P5).

    ASPP of the high-level map is resized to the low-level map and concatenated with its 48-channel projection. Two 3x3
    convolutions follow, and the resolution is doubled.
    """

    @configurable
    def __init__(self, *, in_channels: Sequence[int], channels=128, num_convs=2, num_bases=4, norm="SyncBN", **kwargs):
        """See `ProtoNet`; ``in_channels`` belong to the low-level and the high-level map."""
        super().__init__(in_channels=in_channels[0], **kwargs)
        if len(in_channels) != 2:
            raise ValueError(f"in_channels must be of two maps, a fine and a coarse one; got {list(in_channels)}")
        low, high = in_channels
        self.pyramid = ASPP(high, channels, [6, 12, 18], norm=norm, activation=F.relu)
        self.project = conv_norm_relu(low, 48, norm, kernel_size=1)
        widths = [channels + 48] + [channels] * num_convs
        self.tower = nn.Sequential(*(conv_norm_relu(i, o, norm) for i, o in zip(widths[:-1], widths[1:])))
        self.predictor = nn.Conv2d(channels, num_bases, 1)
        weight_init.c2_msra_fill(self.predictor)

    from_config = ProtoNet.from_config

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """features: name -> (N, C, h, w) -> bases (N, K, 2 h, 2 w), h x w of the low-level map."""
        low, high = (features[name] for name in self.in_features)
        high = F.interpolate(self.pyramid(high), low.shape[-2:], mode="bilinear", align_corners=False)
        x = self.tower(torch.cat([high, self.project(low)], dim=1))
        return self.predictor(F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False))
