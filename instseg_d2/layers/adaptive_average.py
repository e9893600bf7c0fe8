"""
Adaptive average pooling that can be exported with dynamic heights and widths.

N images, C channels, h x w cells of a map.
"""

import torch
import torch.nn.functional as F
from torch import nn


def adaptive_average(x: torch.Tensor, size: int) -> torch.Tensor:
    """
    `adaptive_avg_pool2d` to (size, size): (N, C, h, w) -> (N, C, size, size).

    During an export, two matrix products compute the same result, because ONNX has no adaptive pooling for dynamic
    heights and widths.
    """
    if not torch.compiler.is_compiling():
        return F.adaptive_avg_pool2d(x, size)
    rows, columns = (_cell_weights(x.shape[dim], size, x) for dim in (2, 3))
    return rows @ x @ columns.T


def _cell_weights(length: int, size: int, like: torch.Tensor) -> torch.Tensor:
    """(size, length): row i averages the cells floor(i length / size) ... ceil((i + 1) length / size) - 1."""
    cells = torch.arange(length, device=like.device)
    index = torch.arange(size, device=like.device)[:, None]
    start, stop = index * length // size, ((index + 1) * length + size - 1) // size
    return ((cells >= start) & (cells < stop)).to(like.dtype) / (stop - start).to(like.dtype)


class AdaptiveAverage(nn.Module):
    """`adaptive_average` as a module."""

    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> (N, C, size, size)."""
        return adaptive_average(x, self.size)


def make_pools_exportable(module: nn.Module) -> None:
    """Replace every `nn.AdaptiveAvgPool2d` to a square of more than 1 x 1 by an `AdaptiveAverage`, in place."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                sides = {child.output_size} if isinstance(child.output_size, int) else set(child.output_size)
                if len(sides) == 1 and not sides & {1, None}:
                    setattr(parent, name, AdaptiveAverage(*sides))
