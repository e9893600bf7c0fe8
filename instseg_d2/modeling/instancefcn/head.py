"""The two branches of InstanceFCN. N images, C channels, k grid, h x w cells of a map."""

import torch
import torch.nn.functional as F
from torch import nn

from ...layers import init_normal


class InstanceFCNHead(nn.Module):
    """Predicts instance-sensitive score maps and the objectness of each cell's window (figure 3)."""

    checkpointed_methods = ("forward",)

    def __init__(self, *, in_channels: int, hidden_dim: int = 512, grid: int = 5):
        """
        Args:
            in_channels: C of the feature map.
            hidden_dim: width of both branches.
            grid: k; there are k * k score maps.
        """
        super().__init__()
        self.instance_conv = nn.Conv2d(in_channels, hidden_dim, 1)
        self.score_maps = nn.Conv2d(hidden_dim, grid * grid, 3, padding=1)
        self.objectness_conv = nn.Conv2d(in_channels, hidden_dim, 3, padding=1)
        self.objectness = nn.Conv2d(hidden_dim, 1, 1)
        init_normal(*self.children())

    def forward(self, x: torch.Tensor):
        """
        Args:
            x: (N, C, h, w).

        Returns:
            score_maps: (N, k * k, h, w) logits, relative position (row, column) at row * k + column.
            objectness: (N, h, w) logits.
        """
        score_maps = self.score_maps(F.relu(self.instance_conv(x), inplace=True))
        objectness = self.objectness(F.relu(self.objectness_conv(x), inplace=True))
        return score_maps, objectness[:, 0]
