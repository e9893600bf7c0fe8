"""Stacks of convolutions: their layers one by one, and their initial weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from instseg_d2.layers import ConvTower, conv_norm_elu, conv_stack, init_normal


@pytest.mark.parametrize("norm", ["", "GN"])
def test_conv_stack_layer_by_layer(norm):
    torch.manual_seed(0)
    stack = conv_stack(6, 32, 2, norm)
    kinds = [nn.Conv2d, nn.GroupNorm, nn.ReLU] if norm else [nn.Conv2d, nn.ReLU]
    assert [type(layer) for layer in stack] == kinds * 2
    first, second = (layer for layer in stack if isinstance(layer, nn.Conv2d))
    assert (first.bias is None) == (second.bias is None) == bool(norm)
    deviation = (2 / (32 * 9)) ** 0.5  # of He et al., fan out
    assert 0.9 * deviation < float(first.weight.detach().std()) < 1.1 * deviation
    x = torch.randn(2, 6, 5, 7)
    expected = x
    for conv in (first, second):
        expected = F.conv2d(expected, conv.weight, conv.bias, padding=1)
        expected = F.relu(F.group_norm(expected, 32) if norm else expected)
    torch.testing.assert_close(stack(x), expected)
    assert len(conv_stack(6, 32, 0, norm)) == 0


def test_conv_norm_elu_layer_by_layer():
    torch.manual_seed(0)
    block = nn.Sequential(*conv_norm_elu(3, 5, 4, stride=2)).eval()
    nn.init.uniform_(block[1].running_mean)
    nn.init.uniform_(block[1].running_var, 0.5, 2)
    x = torch.randn(2, 3, 8, 8)
    y = F.conv2d(x, block[0].weight, block[0].bias, stride=2, padding=1)
    y = (y - block[1].running_mean[:, None, None]) / (block[1].running_var + 1e-5).sqrt()[:, None, None]
    torch.testing.assert_close(block(x), torch.where(y > 0, y, y.exp() - 1), rtol=1e-4, atol=1e-5)


def test_small_initial_weights():
    torch.manual_seed(0)
    layers = nn.Conv2d(8, 64, 3), nn.Linear(64, 64)
    init_normal(*layers)
    for layer in layers:
        assert 0.009 < float(layer.weight.detach().std()) < 0.011
        assert not layer.bias.any()


@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_levels_share_convolutions_and_keep_their_norms(norm):
    tower = ConvTower(4, 2, norm, num_levels=3)
    assert len([p for p in tower.parameters() if p.dim() == 4]) == 2
    x = torch.randn(2, 4, 6, 6)
    tower(x, 1)
    seen = [[bool(layer.running_mean.any()) for layer in block.level_norms] for block in tower.blocks]
    assert seen == [[False, True, False]] * 2
