"""
Numbers all locations of a feature pyramid as rows of one matrix.

The maps (N, C, h_l, w_l) of all levels become one matrix (X, C) whose rows run over level, image, y, x. A selection of
locations (positives, candidates, detections) is an index vector of rows.

N images, C channels, X rows of all levels and images, P selected rows, O output channels.
"""

from collections.abc import Sequence

import torch


def flatten_levels(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Maps (N, C, h_l, w_l), one per level -> (X, C)."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) for x in maps])


class LocationGrid:
    """
    The locations of N images on pyramid levels with ``sizes`` (h_l, w_l) and ``strides`` (pixels).

    Location (y, x) of a level lies at pixel (x * stride + stride // 2, y * stride + stride // 2) (FCOS, eq. 1).
    """

    def __init__(self, num_images: int, sizes: Sequence[tuple], strides: Sequence[int], device):
        self.num_images = num_images
        self.sizes = [tuple(size) for size in sizes]
        counts = [num_images * h * w for h, w in self.sizes]
        self.rows_per_level = counts
        starts = [sum(counts[:level]) for level in range(len(counts))]
        columns = list(zip(*((h, w, s, start) for (h, w), s, start in zip(self.sizes, strides, starts))))
        self.heights, self.widths, self.strides, self.starts = torch.tensor(columns).to(device, non_blocking=True)

    @property
    def num_rows(self) -> int:
        return sum(self.rows_per_level)

    def locate(self, rows: torch.Tensor):
        """rows (P,) -> level, image, y and x, (P,) int64 each; y and x in cells of the level."""
        level = (rows[:, None] >= self.starts).sum(1) - 1
        height, width = self.heights[level], self.widths[level]
        rest = rows - self.starts[level]
        image = rest // (height * width)
        rest = rest - image * height * width
        y = rest // width
        return level, image, y, rest - y * width

    def row(self, level, image, y, x) -> torch.Tensor:
        """The row of cell (y, x) in a level of an image; the int64 arguments broadcast."""
        return self.starts[level] + (image * self.heights[level] + y) * self.widths[level] + x

    def pixels(self, level, y, x) -> torch.Tensor:
        """Cells -> (..., 2) float32 pixel coordinates (x, y)."""
        stride = self.strides[level]
        return torch.stack([x * stride + stride // 2, y * stride + stride // 2], dim=-1).float()


def conv_at_rows(features, grid: LocationGrid, rows: torch.Tensor, weight, bias=None) -> torch.Tensor:
    """
    A 3x3 convolution (padding 1, stride 1), computed only at selected locations.

    Args:
        features: (X, C) rows of the input maps (see `flatten_levels`).
        rows: (P,) int64.
        weight: (O, C, 3, 3).
        bias: (O,) or None.

    Returns:
        (P, O), the convolution of the maps at those rows.
    """
    level, _, y, x = grid.locate(rows)
    shift = torch.arange(-1, 2, device=rows.device)
    dy, dx = shift.repeat_interleave(3), shift.repeat(3)
    y, x = y[:, None] + dy, x[:, None] + dx
    width = grid.widths[level][:, None]
    inside = (y >= 0) & (y < grid.heights[level][:, None]) & (x >= 0) & (x < width)
    neighbours = torch.where(inside, rows[:, None] + dy * width + dx, rows[:, None])
    patches = features[neighbours.flatten()].view(len(rows), 9, features.shape[1])
    patches = patches * inside[..., None].to(features.dtype)
    kernel = weight.permute(0, 2, 3, 1).flatten(1).to(features.dtype)
    return torch.nn.functional.linear(patches.flatten(1), kernel, None if bias is None else bias.to(features.dtype))
