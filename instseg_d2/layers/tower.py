"""Towers of convolutions. N images, C channels, h x w cells of a map."""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import NaiveSyncBatchNorm
from torch import nn

from .deform_conv import DeformConv
from .norm import get_norm


def init_normal(*layers: nn.Module, std: float = 0.01) -> None:
    """Initialise weights with this standard deviation (the authors' in predictors) and biases with 0."""
    for layer in layers:
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)


class TowerBlock(nn.Module):
    """3x3 convolution, norm, ReLU. All levels share the convolution; BN and SyncBN have one layer per level."""

    def __init__(self, channels: int, norm: str, num_levels: int, deformable: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        init_normal(self.conv)
        self.offset = None
        if deformable:
            # Deformable convolutions keep their usual initialisation.
            nn.init.kaiming_uniform_(self.conv.weight, nonlinearity="relu")
            self.conv = DeformConv(self.conv.weight, self.conv.bias)
            self.offset = nn.Conv2d(channels, 27, 3, padding=1)
            init_normal(self.offset)
        self.norm = None
        self.level_norms = None
        if norm in ("BN", "SyncBN"):
            kind = {"BN": nn.BatchNorm2d, "SyncBN": NaiveSyncBatchNorm}[norm]
            self.level_norms = nn.ModuleList(kind(channels) for _ in range(num_levels))
        else:
            self.norm = get_norm(norm, channels)

    def forward(self, x: torch.Tensor, level: int) -> torch.Tensor:
        x = self.conv(x) if self.offset is None else self.conv(x, self.offset(x))
        norm = self.norm if self.level_norms is None else self.level_norms[level]
        return F.relu(x if norm is None else norm(x), inplace=True)


class ConvTower(nn.Module):
    """
    ``num_convs`` blocks of 3x3 convolution, norm and ReLU, shared by all levels of a pyramid.

    Args:
        norm: GN, NaiveGN, BN, SyncBN (the last two with one layer per level) or none.
        deformable: whether the last convolution is a modulated deformable one.
    """

    checkpointed_methods = ("forward",)

    def __init__(self, channels: int, num_convs: int, norm: str, num_levels: int, deformable: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(
            TowerBlock(channels, norm, num_levels, deformable and i == num_convs - 1) for i in range(num_convs)
        )

    def forward(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """x (N, C, h, w) of pyramid level ``level`` -> (N, C, h, w)."""
        for block in self.blocks:
            x = block(x, level)
        return x


def conv_stack(in_channels: int, channels: int, num_convs: int, norm: str = "") -> nn.Sequential:
    """``num_convs`` times a 3x3 convolution (with bias if there is no norm; MSRA initialisation), norm and ReLU."""
    layers = []
    for i in range(num_convs):
        layer_norm = get_norm(norm, channels)
        conv = nn.Conv2d(in_channels if i == 0 else channels, channels, 3, padding=1, bias=layer_norm is None)
        weight_init.c2_msra_fill(conv)
        layers += [conv, *([] if layer_norm is None else [layer_norm]), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def conv_norm_elu(in_channels: int, channels: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    """Convolution with bias and padding 1, batch norm, ELU."""
    conv = nn.Conv2d(in_channels, channels, kernel_size, stride=stride, padding=1)
    return [conv, nn.BatchNorm2d(channels), nn.ELU(inplace=True)]
