"""Large linear layers for inference on a CPU, with weights in the layout that oneDNN computes with. X rows."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import register_flop_formula

SMALLEST = 1 << 16  # weights; for smaller layers the BLAS is as fast
_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")

_DTYPES = [torch.float32]

if _AVAILABLE:
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        _DTYPES.append(torch.bfloat16)

    @register_flop_formula(torch.ops.mkldnn._linear_pointwise)
    def _flops(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
        return 2 * math.prod(x_shape) * weight_shape[0]


class PackedLinear(nn.Module):
    """
    A linear layer for inference on a CPU, computed by oneDNN.

    The first call in float32 and the first in bfloat16 (also by autocast) copy the weights into oneDNN's layout. They
    are then neither converted nor reordered again, and oneDNN is fast also where the BLAS is not tuned for the
    processor. A graph, an export, other dtypes and devices get the plain layer.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight = nn.Parameter(layer.weight, requires_grad=False)
        self.bias = layer.bias
        self.packed = {}  # dtype -> weight and bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., in) -> (..., out)."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        served = dtype in _DTYPES and self.weight.device.type == "cpu"
        if not served or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return F.linear(x, self.weight, self.bias)
        if dtype not in self.packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.to(dtype))
            self.packed[dtype] = weight, None if self.bias is None else self.bias.to(dtype)
        return torch.ops.mkldnn._linear_pointwise(x.to(dtype), *self.packed[dtype], "none", [], "")

    def __getstate__(self):
        return {**super().__getstate__(), "packed": {}}  # packed weights cannot be copied


def pack_linears(module: nn.Module) -> None:
    """
    Replace the large linear layers inside a module by `PackedLinear`, in place, if its weights are on a CPU and PyTorch
    has oneDNN.
    """
    if not _AVAILABLE:
        return
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            # Not subclasses: attention reads the weights of its own.
            if type(child) is nn.Linear and child.weight.device.type == "cpu" and child.weight.numel() >= SMALLEST:
                setattr(parent, name, PackedLinear(child))
