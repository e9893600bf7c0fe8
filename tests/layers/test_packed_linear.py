"""Linear layers whose weights oneDNN has packed."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from instseg_d2.layers import PackedLinear, pack_linears


@pytest.mark.parametrize("shape", [(0,), (1,), (5,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_packed_linear_layers(shape, bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 9, bias=bias), torch.randn(*shape, 6)
    packed = PackedLinear(layer)
    expected = x @ layer.weight.T + (layer.bias if bias else 0)
    with torch.no_grad():
        torch.testing.assert_close(packed(x), expected)
        torch.testing.assert_close(copy.deepcopy(packed)(x), expected)
        with torch.autocast("cpu", torch.bfloat16):
            half = packed(x)
        torch.testing.assert_close(packed(x), expected)  # the other dtype changed nothing
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.02, atol=0.02)


def test_graphs_have_the_plain_layer():
    layer, x = nn.Linear(6, 9), torch.randn(2, 6)
    graph = torch.export.export(PackedLinear(layer), (x,))
    assert [x.target for x in graph.graph.nodes if x.op == "call_function"] == [torch.ops.aten.linear.default]
    torch.testing.assert_close(graph.module()(x), layer(x))
    wide = x.double()
    torch.testing.assert_close(PackedLinear(layer).double()(wide), layer.double()(wide))


def test_large_layers_are_packed_and_counted():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 256), nn.ModuleDict({"a": nn.Linear(256, 4)}), nn.MultiheadAttention(256, 2))
    pack_linears(model)
    assert isinstance(model[0], PackedLinear)
    assert isinstance(model[1]["a"], nn.Linear)
    assert isinstance(model[2].out_proj, nn.Linear)  # attention reads its weights
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model[0](torch.zeros(3, 256))
    assert counter.get_total_flops() == 2 * 3 * 256 * 256
