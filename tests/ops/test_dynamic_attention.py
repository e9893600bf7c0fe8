"""dynamic_attention against the equations in float64, row by row."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from instseg_d2.ops import dynamic_attention, has_extension

COMPILED = has_extension() and hasattr(torch.ops.instseg_d2, "dynamic_attention")
needs_extension = pytest.mark.skipif(not COMPILED, reason="the operators are not compiled, or too old")


def arguments(queries, cells, channels, dim, dtype=torch.float32):
    torch.manual_seed(0)
    norms = nn.LayerNorm(dim), nn.LayerNorm(channels)
    for norm in norms:
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    rois, matrices = torch.randn(queries, cells, channels), torch.randn(queries, 2 * channels * dim)
    return rois.to(dtype), matrices.to(dtype), *norms


def oracle(rois, matrices, norm1, norm2):
    """In float64, with the matrices built number by number."""
    channels, dim = rois.shape[2], len(norm1.weight)
    norm = lambda x, n: F.layer_norm(x, x.shape[-1:], n.weight.double(), n.bias.double(), n.eps)  # noqa: E731
    results = []
    for roi, numbers in zip(rois.double(), matrices.double()):
        first = torch.stack([numbers[i * dim : i * dim + dim] for i in range(channels)])
        second = torch.stack([numbers[channels * dim + i * channels :][:channels] for i in range(dim)])
        results.append(F.elu(norm(F.elu(norm(roi @ first, norm1)) @ second, norm2)))
    return torch.stack(results)


SIZES = [(3, 49, 256, 64), (2, 9, 38, 6), (2, 1, 6, 3), (4, 7, 20, 17), (1, 11, 33, 16), (5, 4, 16, 1)]


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grad", [False, True])
def test_dynamic_attention(sizes, dtype, grad):
    inputs = arguments(*sizes, dtype)
    with torch.set_grad_enabled(grad):
        found = dynamic_attention(*inputs)
    assert found.dtype == dtype
    error = (found.double() - oracle(*inputs)).abs()
    assert error.max() < (2e-5 if dtype == torch.float32 else 0.2)
    assert error.mean() < (1e-6 if dtype == torch.float32 else 5e-3)


@needs_extension
@torch.no_grad()
def test_special_inputs():
    rois, matrices, *norms = arguments(4, 5, 20, 17)
    expected = oracle(rois, matrices, *norms).float()
    torch.testing.assert_close(
        dynamic_attention(rois.mT.contiguous().mT, matrices, *norms), expected, rtol=1e-4, atol=1e-5
    )
    assert dynamic_attention(rois[:0], matrices[:0], *norms).shape == (0, 5, 20)
    assert dynamic_attention(rois[:, :0], matrices, *norms).shape == (4, 0, 20)
    rois[2, 1] = torch.nan  # a NaN stays in its cell
    found = dynamic_attention(rois, matrices, *norms)
    assert found[2, 1].isnan().all()
    expected[2, 1] = torch.nan
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


@needs_extension
@torch.no_grad()
def test_operator():
    rois, matrices, norm1, norm2 = arguments(2, 5, 20, 17)
    weights = norm1.weight, norm1.bias, norm2.weight, norm2.bias
    operator = torch.ops.instseg_d2.dynamic_attention
    torch.library.opcheck(operator, (rois, matrices, *weights, 1e-5))
    with FlopCounterMode(display=False) as counter:
        dynamic_attention(rois, matrices, norm1, norm2)
    assert counter.get_total_flops() == 2 * (2 * 2 * 5 * 20 * 17)
    for wrong, message in {
        (rois[0], matrices): "rois should be",
        (rois.double(), matrices): "rois should be float32 or bfloat16",
        (rois, matrices[:, 1:]): "matrices should be",
        (rois, matrices.bfloat16()): "matrices should be",
    }.items():
        with pytest.raises(ValueError, match=message):
            operator(*wrong, *weights, 1e-5)
    with pytest.raises(ValueError, match="weights and biases"):
        operator(rois, matrices, weights[0], weights[2], *weights[2:], 1e-5)
