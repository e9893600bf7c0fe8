"""A large linear layer, computed as a convolution. X rows."""

import torch
import torch.nn.functional as F
from torch import nn


class ConvolvedLinear(nn.Module):
    """
    A linear layer, computed as a 1x1 convolution over the rows, for inference on a CPU.

    PyTorch uses oneDNN for convolutions and the BLAS for float32 matrix products. With a BLAS that is not tuned for the
    processor, a large product takes twice as long.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(layer.weight[:, :, None, None], requires_grad=False)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(X, in) -> (X, out)."""
        if not len(x):
            return F.linear(x, self.weight[:, :, 0, 0], self.bias)
        rows = x[None, :, None].permute(0, 3, 1, 2)  # (1, in, X, 1), channels last: a view
        return F.conv2d(rows, self.weight, self.bias).permute(0, 2, 3, 1).flatten(0, 2)
