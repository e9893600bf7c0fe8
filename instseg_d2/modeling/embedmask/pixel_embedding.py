"""The pixel embedding of EmbedMask. N images, C channels, D dimensions, h x w cells of the finest level."""

from typing import Optional

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from torch import nn

from ...layers import ConvTower
from .versions import value_of

POSITION_UNIT = 100.0  # pixels


def embedding_conv(channels: int, embed_dim: int) -> nn.Conv2d:
    """A 3x3 convolution to an embedding, initialised as the authors do."""
    conv = nn.Conv2d(channels, embed_dim, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    nn.init.zeros_(conv.bias)
    return conv


def add_position(embeddings: torch.Tensor, xy: torch.Tensor, position_scale: Optional[torch.Tensor]) -> torch.Tensor:
    """
    Where there is a scale, the first two dimensions of an embedding get position_scale * (x, y) / 100.

    Args:
        embeddings: (P, D), or a map (N, D, h, w).
        xy: (P, 2), or (2, h, w), pixels.
        position_scale: (1,) or None.
    """
    if position_scale is None:
        return embeddings
    return torch.cat([embeddings[:, :2] + position_scale * (xy / POSITION_UNIT), embeddings[:, 2:]], dim=1)


class PixelHead(nn.Module):
    """A tower on the finest level and one convolution: where each pixel lies in the embedding space."""

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
            stride: of the input map, pixels.
            deformable: the tower's last convolution is deformable.
            divisor: of the tower's output before the convolution.
            scale_factor: from the input map to the embedding.
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
            "embed_dim": value_of(cfg, "EMBED_DIM"),
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
            position_scale: (1,), or None for embeddings that do not know where they are.

        Returns:
            (N, D, h * scale_factor, w * scale_factor) float32.
        """
        x = self.tower(x, 0)
        x = self.embedding(x / self.divisor if self.divisor != 1 else x).float()
        height, width = x.shape[-2:]
        ys, xs = (torch.arange(n, device=x.device) * self.stride + self.stride // 2 for n in (height, width))
        xy = torch.stack([xs.expand(height, width), ys[:, None].expand(height, width)])
        x = add_position(x, xy, position_scale)
        with torch.autocast(x.device.type, enabled=False):
            return F.interpolate(x, scale_factor=self.scale_factor, mode="bilinear", align_corners=False)
