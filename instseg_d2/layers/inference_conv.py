"""Convolutions for inference on a CPU. N images, C and D channels."""

import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import nn


class InferenceConv2d(Conv2d):
    """
    A convolution that keeps a copy of its weights in bfloat16 from the first call under autocast on. Autocast itself
    converts weights without gradients at every call.
    """

    half = None  # weight and bias

    @classmethod
    def convert(cls, module: nn.Conv2d) -> None:
        """Turn a convolution of PyTorch or Detectron2 on a CPU into this class, in place; others stay as they are."""
        if type(module) in (nn.Conv2d, Conv2d) and module.padding_mode == "zeros" and not module.weight.is_cuda:
            if type(module) is nn.Conv2d:
                module.norm = module.activation = None
            module.__class__ = cls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, D, h, w)."""
        graph = torch.compiler.is_compiling() or torch.jit.is_tracing()
        wanted = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        if graph or not wanted or self.weight.dtype != torch.float32 or self.weight.device.type != "cpu":
            return super().forward(x)
        if self.half is None:
            self.half = self.weight.bfloat16(), None if self.bias is None else self.bias.bfloat16()
        x = F.conv2d(x, *self.half, self.stride, self.padding, self.dilation, self.groups)
        x = x if self.norm is None else self.norm(x)
        return x if self.activation is None else self.activation(x)
