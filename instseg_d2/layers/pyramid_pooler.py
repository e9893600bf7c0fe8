"""
RoIAlign on a feature pyramid in one gather. N images, Q boxes per image, D = N * Q boxes, R x R cells, C channels.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import roi_align

from ..ops import traceable
from .locations import flatten_levels
from .roi_pooler import pool_levels


def axis_samples(low, high, limit: torch.Tensor, resolution: int, ratio: int):
    """
    The cells of a map that RoIAlign (aligned) reads along one axis, and their weights.

    Args:
        low, high: (D,) ends of the boxes, in cells of the map.
        limit: (D,) number of cells of the map.
        resolution: R.
        ratio: samples per bin.

    Returns:
        index: (D, R, 2 * ratio) int64, inside the map.
        weights: of the same shape; 0 for samples outside the map.
    """
    steps = (torch.arange(resolution * ratio, device=low.device) + 0.5) / (resolution * ratio)
    points = (low - 0.5)[:, None] + steps * (high - low)[:, None]
    limit = limit[:, None]
    inside = (points >= -1) & (points <= limit)
    points = torch.minimum(points.clamp(min=0), limit - 1.0)
    first = torch.minimum(points.long().clamp(min=0), limit - 1)  # also clamps NaN
    share = points - first
    index = torch.stack([first, torch.minimum(first + 1, limit - 1)], dim=-1)
    weights = torch.stack([1 - share, share], dim=-1) * inside[..., None] / ratio
    return index.unflatten(1, (resolution, ratio)).flatten(2), weights.unflatten(1, (resolution, ratio)).flatten(2)


def _every(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Repeat T values per cell in a new dimension: (D, R, T) -> (D, R, T * T)."""
    return values.unsqueeze(dim).expand(*values.shape, values.shape[2]).flatten(2)


class PyramidPooler(nn.Module):
    """
    RoIAlign ("ROIAlignV2") of each box at the pyramid level of its size (FPN, eq. 1): level
    floor(4 + log2(sqrt(area) / 224 + 1e-8)), clamped.

    Each output cell is a weighted sum of cells of one level, so a single `embedding_bag` over the rows of all maps
    computes all levels and boxes, without a loop over levels or a host read. Channels come last.

    Args:
        strides: strides of the maps, pixels; each is twice the one before.
        resolution: R.
        sampling_ratio: samples per bin and axis.
    """

    def __init__(self, strides: Sequence[int], resolution: int, sampling_ratio: int = 2):
        super().__init__()
        self.strides = tuple(strides)
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio

    def levels(self, boxes: torch.Tensor) -> torch.Tensor:
        """boxes (D, 4) -> (D,) int64 index into the maps."""
        finest, coarsest = (stride.bit_length() - 1 for stride in (self.strides[0], self.strides[-1]))
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        level = torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-8)).clamp(finest, coarsest)
        return torch.nan_to_num(level, nan=finest).long() - finest

    def forward(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor, rows=None) -> torch.Tensor:
        """
        Args:
            maps: (N, C, h_l, w_l), finest first.
            boxes: (N, Q, 4) x1, y1, x2, y2 in input pixels, without gradient.
            rows: ``self.rows(maps)``, to share it among several calls.

        Returns:
            (D, R * R, C) float32, or the dtype of ``rows``.
        """
        batch, count = boxes.shape[:2]
        flat = boxes.detach().float().flatten(0, 1)
        level = self.levels(flat)
        if traceable.is_exporting():
            return self._traceable(maps, flat, level)
        sizes = [(x.shape[2], x.shape[3]) for x in maps]
        starts = [0]
        for height, width in sizes:
            starts.append(starts[-1] + batch * height * width)
        table = torch.tensor(
            [(*size, start, 1 / stride) for size, start, stride in zip(sizes, starts, self.strides)],
            dtype=torch.float64,  # exact row numbers
        ).to(flat.device, non_blocking=True)[level]
        height, width, start = table[:, :3].long().unbind(1)
        left, top, right, bottom = (flat * table[:, 3:].float()).unbind(1)
        y, y_weight = axis_samples(top, bottom, height, self.resolution, self.sampling_ratio)
        x, x_weight = axis_samples(left, right, width, self.resolution, self.sampling_ratio)
        image = torch.arange(batch, device=flat.device).repeat_interleave(count, output_size=batch * count)
        first_row = (start + image * height * width)[:, None, None]
        # Every y with every x. Long last dimensions make this fast on a CPU.
        index = _every(first_row + y * width[:, None, None], 3)[:, :, None] + _every(x, 2)[:, None]
        weights = _every(y_weight, 3)[:, :, None] * _every(x_weight, 2)[:, None]
        rows = self.rows(maps) if rows is None else rows
        pooled = F.embedding_bag(
            index.flatten(0, 2), rows, per_sample_weights=weights.flatten(0, 2).to(rows.dtype), mode="sum"
        )
        return pooled.view(batch * count, self.resolution**2, -1)

    def _traceable(self, maps: Sequence[torch.Tensor], boxes: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """`forward` for export, see `pool_levels`."""
        count = len(boxes) // len(maps[0])
        image = torch.arange(len(maps[0]), device=boxes.device).repeat_interleave(count, output_size=len(boxes))
        scales = [1 / stride for stride in self.strides]
        options = {"output_size": self.resolution, "sampling_ratio": self.sampling_ratio, "aligned": True}
        poolers = [partial(roi_align, spatial_scale=scale, **options) for scale in scales]
        pooled = pool_levels([x.float() for x in maps], scales, poolers, boxes, image, level)
        return pooled.flatten(2).transpose(1, 2)

    @staticmethod
    def rows(maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """
        All cells of all maps: (sum of N * h_l * w_l, C), in float32.

        Maps in bfloat16 stay so on a CPU without gradients, because pooling spends its time on reading them; it sums in
        float32 all the same.
        """
        rows = flatten_levels(maps)
        keep = rows.dtype == torch.bfloat16 and rows.device.type == "cpu" and not torch.is_grad_enabled()
        return rows if keep else rows.float()
