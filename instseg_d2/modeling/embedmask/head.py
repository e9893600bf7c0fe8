"""
The two heads of EmbedMask, which embed pixels and proposals.

N images, P locations, C channels, E embedding dimensions, h x w cells of the finest level.
"""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import nn

from ...config.embedmask import embedmask_value
from ...layers import ConvTower, conv_at_rows, flatten_levels, init_normal
from ..proposal_generator.fcos_head import HeadOutputs

POSITION_UNIT = 100.0  # pixels
MAX_LOG_MARGIN = 40.0  # far above any learned one, so that margin times squared distance stays finite


def embedding_conv(channels: int, embed_dim: int) -> nn.Conv2d:
    """A 3x3 convolution to an embedding, with the authors' initialisation."""
    conv = nn.Conv2d(channels, embed_dim, 3, padding=1)
    init_normal(conv)
    return conv


def box_margin_layer(initial_margin: float) -> nn.Linear:
    """A linear layer from the four distances of a box to its log margin."""
    layer = nn.Linear(4, 1)
    init_normal(layer)
    nn.init.constant_(layer.bias, math.log(initial_margin))
    return layer


def add_position(embeddings: torch.Tensor, xy: torch.Tensor, position_scale: Optional[torch.Tensor]) -> torch.Tensor:
    """
    Add position_scale * (x, y) / 100 to the first two embedding dimensions.

    Args:
        embeddings: (P, E), or a map (N, E, h, w).
        xy: (P, 2), or (2, h, w), pixels.
        position_scale: (1,), or None to add nothing.
    """
    if position_scale is None:
        return embeddings
    return torch.cat([embeddings[:, :2] + position_scale * (xy / POSITION_UNIT), embeddings[:, 2:]], dim=1)


class PixelHead(nn.Module):
    """Predicts the pixel embedding from the finest level: a tower and one convolution."""

    @configurable
    def __init__(
        self,
        *,
        channels: int,
        embed_dim: int,
        stride: int,
        num_convs: int = 4,
        norm: str = "GN",
        deformable: bool = False,
        divisor: float = 1.0,
        scale_factor: int = 2,
    ):
        """
        Args:
            stride: stride of the input map, pixels.
            deformable: whether the tower's last convolution is deformable.
            divisor: divides the tower's output before the convolution.
            scale_factor: upsampling from the input map to the embedding.
        """
        super().__init__()
        self.stride = stride
        self.divisor = divisor
        self.scale_factor = scale_factor
        self.tower = ConvTower(channels, num_convs, norm, 1, deformable)
        self.embedding = embedding_conv(channels, embed_dim)

    @classmethod
    def from_config(cls, cfg, channels: int):
        node = cfg.MODEL.EMBED_MASK
        return {
            "channels": channels,
            "embed_dim": embedmask_value(cfg, "EMBED_DIM"),
            "stride": node.FPN_STRIDES[0],
            "num_convs": node.MASK_NUM_CONVS,
            "norm": node.NORM,
            "deformable": node.USE_DCN_IN_TOWER,
            "divisor": node.EMBED_REDUCE_FACTOR,
            "scale_factor": node.MASK_SCALE_FACTOR,
        }

    def forward(self, x: torch.Tensor, position_scale: Optional[torch.Tensor]) -> torch.Tensor:
        """
        Args:
            x: (N, C, h, w).
            position_scale: see `add_position`.

        Returns:
            (N, E, h * scale_factor, w * scale_factor) float32.
        """
        x = self.tower(x, 0)
        x = self.embedding(x / self.divisor if self.divisor != 1 else x).float()
        height, width = x.shape[-2:]
        ys, xs = (torch.arange(n, device=x.device) * self.stride + self.stride // 2 for n in (height, width))
        xy = torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)])
        x = add_position(x, xy, position_scale)
        with torch.autocast(x.device.type, enabled=False):
            return F.interpolate(x, scale_factor=self.scale_factor, mode="bilinear", align_corners=False)


class ProposalHead(nn.Module):
    """
    Predicts a proposal embedding and a margin at selected locations of FCOS (EmbedMask, eq. 3-5).

    A pixel belongs to the object with probability exp(-margin * squared distance of the embeddings). The margin is the
    paper's 1 / (2 sigma^2).
    """

    @configurable
    def __init__(
        self,
        *,
        channels: int,
        embed_dim: int,
        num_levels: int,
        margin: str,
        prior_margin: float = 2.0,
        fixed: bool = False,
        divisor: float = 1.0,
        margin_divisor: float = 32.0,
        box_scale: float = 800.0,
    ):
        """
        Args:
            margin: "box", "scalar" or "dimension", see `Version`.
            prior_margin: distance at which the initial probability is 0.5.
            fixed: use the initial margin for all masks.
            divisor, margin_divisor: divide the box tower's output before the convolutions.
            box_scale: divides box distances, pixels; -1 for the shorter side of the padded batch. Only for "box".
        """
        super().__init__()
        self.initial_margin = -math.log(0.5) / prior_margin**2
        self.fixed_margin = self.initial_margin if fixed else None
        self.divisor = divisor
        self.margin_divisor = margin_divisor
        self.box_scale = box_scale
        self.embedding = embedding_conv(channels, embed_dim)
        self.box_margin, self.margin, self.margin_scales = None, None, None
        if margin == "box":
            self.box_margin = box_margin_layer(self.initial_margin)
        elif not fixed:  # an unused layer would get no gradient
            self.margin = embedding_conv(channels, embed_dim if margin == "dimension" else 1)
            nn.init.constant_(self.margin.bias, math.log(self.initial_margin))
            if margin == "dimension":
                self.margin_scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(num_levels))

    @classmethod
    def from_config(cls, cfg, channels: int, margin: str):
        node = cfg.MODEL.EMBED_MASK
        return {
            "channels": channels,
            "embed_dim": embedmask_value(cfg, "EMBED_DIM"),
            "num_levels": len(node.FPN_STRIDES),
            "margin": margin,
            "prior_margin": node.PRIOR_MARGIN,
            "fixed": node.FIX_MARGIN,
            "divisor": node.EMBED_REDUCE_FACTOR,
            "margin_divisor": node.MARGIN_REDUCE_FACTOR,
            "box_scale": node.BOX_TO_MARGIN_SCALE,
        }

    def forward(self, outputs: HeadOutputs, rows: torch.Tensor, position_scale: Optional[torch.Tensor], canvas: tuple):
        """
        Args:
            outputs: of FCOS's head.
            rows: (P,) int64.
            position_scale: see `add_position`.
            canvas: (H, W) of the padded batch, pixels.

        Returns:
            embeddings: (P, E) float32.
            margins: (P, 1) or (P, E) float32; the initial margin if none is predicted.
        """
        grid = outputs.grid
        level, _, y, x = grid.locate(rows)
        weight, bias = self.embedding.weight / self.divisor, self.embedding.bias
        if self.margin is not None:  # one convolution reads the patches once
            weight = torch.cat([weight, self.margin.weight / self.margin_divisor])
            bias = torch.cat([bias, self.margin.bias])
        values = conv_at_rows(flatten_levels(outputs.box_tower), grid, rows, weight, bias).float()
        embeddings, log_margins = values.split([self.embedding.out_channels, len(weight) - len(self.embedding.bias)], 1)
        embeddings = add_position(embeddings, grid.pixels(level, y, x), position_scale)
        if self.box_margin is not None:
            scale = self.box_scale if self.box_scale > 0 else float(min(canvas))
            distances = outputs.ltrb[rows].detach().float() * (grid.strides[level][:, None] / scale)
            with torch.autocast(values.device.type, enabled=False):
                log_margins = F.linear(distances, self.box_margin.weight, self.box_margin.bias)
        elif self.margin is None:
            return embeddings, embeddings.new_full((len(rows), 1), self.initial_margin)
        elif self.margin_scales is not None:
            scales = torch.cat(list(self.margin_scales))[level][:, None]
            log_margins = torch.cat([log_margins[:, :2] * scales, log_margins[:, 2:]], dim=1)
        return embeddings, log_margins.clamp(max=MAX_LOG_MARGIN).exp()
