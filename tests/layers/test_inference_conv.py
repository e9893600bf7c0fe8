"""Convolutions that keep their weights in bfloat16."""

import copy

import pytest
import torch
from detectron2.layers import Conv2d
from torch import nn

from instseg_d2.layers import InferenceConv2d


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_convolutions_keep_their_weights(bias, own):
    torch.manual_seed(0)
    settings = {"stride": 2, "padding": 1, "groups": 2, "bias": bias}
    if own:
        layer = Conv2d(4, 6, 3, norm=nn.BatchNorm2d(6), activation=nn.ReLU(), **settings)
        nn.init.uniform_(layer.norm.running_var, 0.5, 2)
    else:
        layer = nn.Conv2d(4, 6, 3, **settings)
    layer.eval()
    fast, x = copy.deepcopy(layer), torch.randn(2, 4, 9, 7)
    InferenceConv2d.convert(fast)
    assert isinstance(fast, InferenceConv2d)
    with torch.no_grad():
        for _ in range(2):
            assert torch.equal(fast(x), layer(x))
            with torch.autocast("cpu", torch.bfloat16):
                found = fast(x)
                assert found.dtype == layer(x).dtype
                assert torch.equal(found, layer(x))
        fast.weight.zero_()  # not read again
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(fast(x), found)


def test_other_convolutions_stay():
    class Own(nn.Conv2d):
        pass

    for layer in (Own(2, 2, 1), nn.Conv2d(2, 2, 3, padding_mode="reflect"), nn.ConvTranspose2d(2, 2, 2)):
        kind = type(layer)
        InferenceConv2d.convert(layer)
        assert type(layer) is kind
