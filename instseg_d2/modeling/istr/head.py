"""
One refinement head of ISTR (figure 2 of the paper) and its parts.

N images, Q queries per image, C channels, R x R cells of the RoI feature (7 x 7), K classes, L length of a mask code.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ...layers import conv_norm_elu, pack_linears
from ...ops import dynamic_attention

ROI_ATTENTIONS = ("dynamic", "multihead")
MASK_ROI_SIZE = 28  # cells per side of the RoI feature that the RoI mask branch reads


def linear_stack(channels: int, num_layers: int) -> nn.Sequential:
    """``num_layers`` times a linear layer without bias, LayerNorm and ELU."""
    layers = []
    for _ in range(num_layers):
        layers += [nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ELU(inplace=True)]
    return nn.Sequential(*layers)


class DynamicAttention(nn.Module):
    """
    Multiplies the RoI feature by two matrices generated from the query (dynamic attention, figure 3 of the paper).

    Args:
        dim: d of the matrices C x d and d x C.
        cells: R * R.
    """

    # Most of a head's rows, so Muon would take as long as the rest of a training step.
    not_for_muon = ("dynamic_layer.weight",)

    def __init__(self, channels: int, dim: int = 64, cells: int = 49):
        super().__init__()
        self.shape = (channels, dim)
        self.dynamic_layer = nn.Linear(channels, 2 * channels * dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(channels)
        self.out_layer = nn.Linear(cells * channels, channels)
        self.norm3 = nn.LayerNorm(channels)

    def forward(self, queries: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """queries (N * Q, C), rois (N * Q, R * R, C) -> (N * Q, C)."""
        x = dynamic_attention(rois, self.dynamic_layer(queries), self.norm1, self.norm2)
        return F.elu(self.norm3(self.out_layer(x.flatten(1))), inplace=True)


class MultiHeadRoIAttention(nn.Module):
    """Multi-head attention of each query to the cells of its RoI feature (an ablation of the paper)."""

    def __init__(self, channels: int, num_heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, num_heads, batch_first=True)

    def forward(self, queries: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        """queries (N * Q, C), rois (N * Q, R * R, C) -> (N * Q, C)."""
        return self.attention(queries[:, None], rois, rois, need_weights=False)[0][:, 0]


class VectorMaskBranch(nn.Module):
    """Mask branch of version 1: predicts the code from the query."""

    needs_rois = False

    def __init__(self, channels: int, num_layers: int, code_dim: int):
        super().__init__()
        self.layers = linear_stack(channels, num_layers)
        self.codes = nn.Linear(channels, code_dim)

    def forward(self, queries: torch.Tensor, rois=None):
        """queries (N * Q, C) -> codes (N * Q, L), and None for the decoder."""
        return self.codes(self.layers(queries)), None


class RoIMaskBranch(nn.Module):
    """
    Mask branch of version 2: predicts the code from the RoI feature of the refined box.

    Args:
        decoder_channels: channels of the RoI feature for a learned decoder, or 0; see `forward`.
    """

    needs_rois = True

    def __init__(self, channels: int, code_dim: int, decoder_channels: int = 0):
        super().__init__()
        self.layers = nn.Sequential(
            *conv_norm_elu(channels, channels, 4, 2),
            *conv_norm_elu(channels, channels, 4, 2),
            nn.Conv2d(channels, code_dim, MASK_ROI_SIZE // 4),
        )
        self.decoder_feature = None
        if decoder_channels:
            middle = 2 * decoder_channels
            widths = (channels, middle, middle, decoder_channels, decoder_channels)
            pairs = zip(widths[:-1], widths[1:])
            self.decoder_feature = nn.Sequential(*(m for pair in pairs for m in conv_norm_elu(*pair, 3)))

    def forward(self, queries, rois: torch.Tensor):
        """
        rois (D, C, 28, 28) of D boxes -> codes (D, L), and the RoI feature (D, 32, 28, 28) that the decoder adds after
        its second upsampling, or None.
        """
        feature = None if self.decoder_feature is None else self.decoder_feature(rois)
        return self.layers(rois).flatten(1), feature


class SelfAttention(nn.Module):
    """
    A copy of a multi-head self-attention for inference, whose linear layers can be packed (`pack_linears`).

    Args:
        layer: with batch_first.
    """

    def __init__(self, layer: nn.MultiheadAttention):
        super().__init__()
        self.num_heads = layer.num_heads
        width = layer.embed_dim
        self.projections = nn.Linear(width, 3 * width, device="meta")
        self.projections.weight, self.projections.bias = layer.in_proj_weight, layer.in_proj_bias
        self.output = nn.Linear(width, width, device="meta")
        self.output.weight, self.output.bias = layer.out_proj.weight, layer.out_proj.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, Q, C) -> (N, Q, C)."""
        q, k, v = self.projections(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class RefinementHead(nn.Module):
    """
    Self-attention of the queries, attention to the RoI feature, feed-forward layer, and class, box and mask branches.

    Args:
        roi_attention: (queries (N * Q, C), rois (N * Q, R * R, C)) -> (N * Q, C).
        mask_branch: (queries (N * Q, C), rois (N * Q, C, 28, 28) or None) -> codes (N * Q, L), decoder feature.
        num_heads: heads of the self-attention.
        feedforward: width of the feed-forward layer.
        num_class_layers, num_box_layers: number of layers before the last linear layer of each branch.
    """

    def __init__(
        self,
        *,
        roi_attention: nn.Module,
        mask_branch: nn.Module,
        channels: int = 256,
        num_heads: int = 8,
        feedforward: int = 2048,
        dropout: float = 0.0,
        num_classes: int = 80,
        num_class_layers: int = 3,
        num_box_layers: int = 3,
    ):
        super().__init__()
        self.self_attention = nn.MultiheadAttention(channels, num_heads, dropout=dropout, batch_first=True)
        self.roi_attention = roi_attention
        self.linear1 = nn.Linear(channels, feedforward)
        self.linear2 = nn.Linear(feedforward, channels)
        self.norm1 = nn.LayerNorm(channels)
        self.norm2 = nn.LayerNorm(channels)
        self.norm3 = nn.LayerNorm(channels)
        self.dropout = nn.Dropout(dropout)
        self.class_branch = linear_stack(channels, num_class_layers)
        self.class_logits = nn.Linear(channels, num_classes)
        self.box_branch = linear_stack(channels, num_box_layers)
        self.box_deltas = nn.Linear(channels, 4)
        self.mask_branch = mask_branch

    def forward(self, queries: torch.Tensor, rois: torch.Tensor, groups: int = 1) -> torch.Tensor:
        """
        queries (N, Q, C), rois (N * Q, R * R, C) of their boxes -> queries (N, Q, C). Each of ``groups`` equal parts of
        an image's queries attends to itself.
        """
        parts = queries if groups == 1 else queries.unflatten(1, (groups, -1)).flatten(0, 1)
        if isinstance(self.self_attention, SelfAttention):
            attended = self.self_attention(parts)
        else:
            attended = self.self_attention(parts, parts, parts, need_weights=False)[0]
        queries = self.norm1(queries + self.dropout(attended.reshape(queries.shape)))
        attended = self.roi_attention(queries.flatten(0, 1), rois).view_as(queries)
        queries = self.norm2(queries + self.dropout(attended))
        inner = self.dropout(F.elu(self.linear1(queries), inplace=True))
        return self.norm3(queries + self.dropout(self.linear2(inner)))

    def fold(self) -> None:
        """For inference on a CPU: replace the large linear layers by faster ones, in place."""
        if self.linear1.weight.device.type == "cpu":
            self.self_attention = SelfAttention(self.self_attention)
            pack_linears(self)

    def classify(self, queries: torch.Tensor) -> torch.Tensor:
        """queries (..., C) -> class logits (..., K)."""
        return self.class_logits(self.class_branch(queries))

    def deltas(self, queries: torch.Tensor) -> torch.Tensor:
        """queries (..., C) -> box deltas (..., 4)."""
        return self.box_deltas(self.box_branch(queries))


def init_heads(heads: Sequence[nn.Module], prior: float) -> None:
    """
    Initialise parameters of more than one dimension by Xavier uniform and the class biases by log(p / (1 - p)) with the
    prior p of the focal loss. The others keep PyTorch's defaults.
    """
    for head in heads:
        for parameter in head.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(head.class_logits.bias, math.log(prior / (1 - prior)))
