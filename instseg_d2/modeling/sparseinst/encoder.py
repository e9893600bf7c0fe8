"""
The instance context encoder of SparseInst (section 3.3 of the paper). N images, C channels, h x w cells of a map.
"""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.utils.registry import Registry
from torch import nn

from ...layers import adaptive_average
from ..backbone import check_in_features

SPARSE_INST_ENCODER_REGISTRY = Registry("SPARSE_INST_ENCODER")
SPARSE_INST_ENCODER_REGISTRY.__doc__ = """
Modules called with (cfg, input_shape) whose forward maps the backbone's features to one map (N, C, h, w) of stride 8.
"""


def build_sparse_inst_encoder(cfg, input_shape: dict[str, ShapeSpec]) -> nn.Module:
    """The module named by MODEL.SPARSE_INST.ENCODER.NAME."""
    name = cfg.MODEL.SPARSE_INST.ENCODER.NAME
    # The authors' default is not registered in their code; it means the encoder of the paper.
    name = "InstanceContextEncoder" if name == "FPNPPMEncoder" else name
    return SPARSE_INST_ENCODER_REGISTRY.get(name)(cfg, input_shape)


class PyramidPooling(nn.Module):
    """Concatenates the input with its averages over 1, 2, 3 and 6 cells per side, and projects the result."""

    def __init__(self, channels: int, branch_channels: int, sizes: Sequence[int] = (1, 2, 3, 6)):
        super().__init__()
        self.sizes = tuple(sizes)
        self.branches = nn.ModuleList(nn.Conv2d(channels, branch_channels, 1) for _ in self.sizes)
        self.bottleneck = nn.Conv2d(channels + len(self.sizes) * branch_channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> (N, C, h, w)."""
        pooled = [
            F.interpolate(F.relu(branch(adaptive_average(x, size))), x.shape[-2:], mode="bilinear", align_corners=False)
            for size, branch in zip(self.sizes, self.branches)
        ]
        return F.relu(self.bottleneck(torch.cat([*pooled, x], dim=1)))


@SPARSE_INST_ENCODER_REGISTRY.register()
class InstanceContextEncoder(nn.Module):
    """FPN with pyramid pooling at the coarsest level; all levels are fused at the finest one (section 3.3)."""

    checkpointed_methods = ("forward",)

    @configurable
    def __init__(self, *, in_features: Sequence[str], in_channels: Sequence[int], channels: int = 256, norm: str = ""):
        """
        Args:
            in_features, in_channels: names and channels of the backbone's feature maps, finest first.
            channels: C of the output.
            norm: norm after the convolutions outside the pyramid pooling; the paper has none. At inference a batch norm
                is folded into the convolution before it.
        """
        super().__init__()
        self.in_features = list(in_features)

        def conv(inputs: int, size: int) -> nn.Module:
            return Conv2d(inputs, channels, size, padding=size // 2, norm=get_norm(norm, channels))

        self.laterals = nn.ModuleList(conv(c, 1) for c in in_channels)
        self.outputs = nn.ModuleList(conv(channels, 3) for _ in in_channels)
        self.context = PyramidPooling(channels, channels // 4)
        self.fusion = conv(channels * len(self.in_features), 1)
        for conv in (*self.laterals, *self.outputs):
            weight_init.c2_xavier_fill(conv)
        weight_init.c2_msra_fill(self.fusion)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        node = cfg.MODEL.SPARSE_INST.ENCODER
        check_in_features("MODEL.SPARSE_INST.ENCODER.IN_FEATURES", node.IN_FEATURES, input_shape)
        strides = [input_shape[name].stride for name in node.IN_FEATURES]
        if not strides or strides != sorted(set(strides)):
            raise ValueError(
                f"MODEL.SPARSE_INST.ENCODER.IN_FEATURES is {node.IN_FEATURES}; list different maps, finest first."
            )
        return {
            "in_features": node.IN_FEATURES,
            "in_channels": [input_shape[name].channels for name in node.IN_FEATURES],
            "channels": node.NUM_CHANNELS,
            "norm": node.NORM,
        }

    def forward(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """features: name -> (N, C_l, h_l, w_l) -> (N, C, h, w) at the finest input map."""
        maps = [lateral(features[name]) for name, lateral in zip(self.in_features, self.laterals)]
        top_down = self.context(maps[-1])
        outputs = [self.outputs[-1](top_down)]
        for x, output in zip(reversed(maps[:-1]), list(self.outputs)[-2::-1]):
            top_down = x + F.interpolate(top_down, x.shape[-2:], mode="nearest")
            outputs.append(output(top_down))
        size = outputs[-1].shape[-2:]
        coarser = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in outputs[-2::-1]]
        if self.fusion is None:
            return sum(coarser, outputs[-1])
        return self.fusion(torch.cat([outputs[-1], *coarser], dim=1))

    @torch.no_grad()
    def fold(self) -> None:
        """
        For inference only: merge each output convolution with its part of the fusion convolution, in place. Norms must
        be folded before.

        No nonlinearity lies between them, and a 1x1 convolution commutes with bilinear resizing.
        """
        shares = self.fusion.weight[:, :, 0, 0].split(self.fusion.out_channels, dim=1)
        biases = [self.fusion.bias] + [torch.zeros_like(self.fusion.bias)] * (len(shares) - 1)
        for conv, share, bias in zip(self.outputs, shares, biases):
            conv.weight.copy_(torch.einsum("oc,cihw->oihw", share, conv.weight))
            conv.bias.copy_(share @ conv.bias + bias)
        self.fusion = None
