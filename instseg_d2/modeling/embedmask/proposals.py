"""
The proposal embedding and margin of EmbedMask, at chosen locations alone. P locations, D dimensions, C channels.
"""

import math
from typing import Optional

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import nn

from ...layers import conv_at_rows, flatten_levels
from ..proposal_generator.fcos_head import HeadOutputs
from .pixel_embedding import add_position, embedding_conv
from .versions import value_of

MAX_LOG_MARGIN = 40.0  # far beyond any that is learned: the product with a squared distance stays finite


class ProposalHead(nn.Module):
    """
    For a location of FCOS: the point that its object's pixels should be near to, and how near (EmbedMask, eq. 3-5).

    A margin is 1 / (2 sigma^2) of the paper: a pixel belongs to the object with exp(-margin * squared distance).
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
            fixed: masks use the initial margin everywhere.
            divisor, margin_divisor: of the box tower before the convolutions.
            box_scale: of box distances, pixels; -1: the shorter side of the padded batch. "box" alone.
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
            self.box_margin = nn.Linear(4, 1)
            nn.init.normal_(self.box_margin.weight, std=0.01)
            nn.init.constant_(self.box_margin.bias, math.log(self.initial_margin))
        elif not fixed:  # a layer that nothing reads would get no gradient
            self.margin = embedding_conv(channels, embed_dim if margin == "dimension" else 1)
            nn.init.constant_(self.margin.bias, math.log(self.initial_margin))
            if margin == "dimension":
                self.margin_scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(num_levels))

    @classmethod
    def from_config(cls, cfg, channels: int, margin: str):
        node = cfg.MODEL.EMBED_MASK
        return {
            "channels": channels,
            "embed_dim": value_of(cfg, "EMBED_DIM"),
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
            outputs: of FCOS's head; rows: (P,).
            position_scale: (1,), or None for embeddings that do not know where they are.
            canvas: (H, W) of the padded batch, pixels.

        Returns:
            embeddings: (P, D) float32.
            margins: (P, 1) or (P, D) float32, as predicted; the initial one where nothing is predicted.
        """
        grid = outputs.grid
        level, _, y, x = grid.locate(rows)
        weight, bias = self.embedding.weight / self.divisor, self.embedding.bias
        if self.margin is not None:  # one convolution reads the neighbourhoods once
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
