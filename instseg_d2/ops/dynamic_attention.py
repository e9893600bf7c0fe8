"""Dynamic attention between its two generated matrices, as one operator."""

import math

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from . import extension, reference


def dynamic_attention(rois: Tensor, matrices: Tensor, norm1: nn.LayerNorm, norm2: nn.LayerNorm) -> Tensor:
    """Multiplies the RoI feature of each query by two matrices of its own: ELU(norm2(ELU(norm1(X A)) B)).

    Figure 3 of arXiv 2105.00637, for Q queries with P cells of C channels. On a CPU, without gradients, the compiled
    operator takes one query after the other through all of it, while its matrices are in the cache, in float32.

    Args:
        rois: X, (Q, P, C).
        matrices: (Q, 2 C d): A (C, d) and B (d, C), row by row.
        norm1, norm2: over d and C channels, with one epsilon.

    Returns:
        (Q, P, C) in the dtype of ``matrices``.
    """
    dtype = matrices.dtype
    compiled = (
        not torch.is_grad_enabled()
        and matrices.device.type == "cpu"
        and dtype in (torch.float32, torch.bfloat16)
        and norm1.weight.dtype == torch.float32
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and extension.serves("cpu")
        and hasattr(torch.ops.instseg_d2, "dynamic_attention")  # not in libraries of older versions
    )
    if not compiled:
        return reference.dynamic_attention(rois, matrices, norm1, norm2)
    weights = norm1.weight, norm1.bias, norm2.weight, norm2.bias
    return torch.ops.instseg_d2.dynamic_attention(rois.to(dtype), matrices, *weights, norm1.eps)


def _fake(rois, matrices, weight1, bias1, weight2, bias2, epsilon):
    return torch.empty_like(rois, memory_format=torch.contiguous_format)


def _flops(rois_shape, matrices_shape, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(matrices_shape) * rois_shape[1]


if extension.has_extension() and hasattr(torch.ops.instseg_d2, "dynamic_attention"):
    torch.library.register_fake("instseg_d2::dynamic_attention", _fake)
    register_flop_formula(torch.ops.instseg_d2.dynamic_attention)(_flops)
