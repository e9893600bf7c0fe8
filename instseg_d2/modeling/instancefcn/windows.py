"""
Positions of InstanceFCN's windows. h x w cells of the feature map, m mask size, H x W pixels of the network's input.

Cell (y, x) stands for the window of m x m cells whose first row and column are y - m // 2 and x - m // 2. For odd m,
the window is centred on the cell.
"""

import torch


def window_offset(mask_size: int) -> float:
    """Offset in cells from a cell's top left corner to the centre of its window: 0.5 for odd m, 0 for even m."""
    return mask_size / 2 - mask_size // 2


def window_corners(cells: torch.Tensor, width: int, mask_size: int):
    """Cells y * width + x (...) -> first row and column of their windows, each (...) int64."""
    return cells // width - mask_size // 2, cells % width - mask_size // 2


def window_centers(count: int, stride: int, mask_size: int, device) -> torch.Tensor:
    """Centres of the windows of ``count`` rows or columns of cells, pixels: (count,)."""
    return (torch.arange(count, device=device) + window_offset(mask_size)) * stride


def inside_image(size: tuple, image_size: tuple, stride: int, mask_size: int, device) -> torch.Tensor:
    """Whether each of ``size`` (h, w) windows has its centre in an image of ``image_size`` (H, W): (h, w) bool."""
    inside = [window_centers(n, stride, mask_size, device) < limit for n, limit in zip(size, image_size)]
    return inside[0][:, None] & inside[1]
