"""
Where the windows of InstanceFCN lie. h x w cells of the feature map, m mask size, H x W pixels of the network's input.

Cell (y, x) stands for the window of m x m cells whose first row and column are y - m // 2 and x - m // 2. If m is odd,
the window's centre is the cell's.
"""

import torch


def window_offset(mask_size: int) -> float:
    """How far right of and below a cell's corner the centre of its window lies, in cells: 0.5 for an odd m."""
    return mask_size / 2 - mask_size // 2


def window_corners(cells: torch.Tensor, width: int, mask_size: int):
    """Cells y * W + x (...) -> first row and column of their windows, each (...) int64."""
    return cells // width - mask_size // 2, cells % width - mask_size // 2


def window_centers(count: int, stride: int, mask_size: int, device) -> torch.Tensor:
    """Where the windows of ``count`` rows or columns of cells have their centres, pixels: (count,)."""
    return (torch.arange(count, device=device) + window_offset(mask_size)) * stride


def inside_image(size: tuple, image_size: tuple, stride: int, mask_size: int, device) -> torch.Tensor:
    """Which of the (h, w) = ``size`` windows have their centre in the image of ``image_size`` (H, W): (h, w) bool."""
    inside = [window_centers(n, stride, mask_size, device) < limit for n, limit in zip(size, image_size)]
    return inside[0][:, None] & inside[1]
