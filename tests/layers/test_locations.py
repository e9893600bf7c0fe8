"""Convolution at selected locations against the whole convolution."""

import pytest
import torch
import torch.nn.functional as F

from instseg_d2.layers import LocationGrid, conv_at_rows, flatten_levels


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_conv_at_rows_equals_the_dense_convolution(memory_format):
    torch.manual_seed(0)
    maps = [
        torch.randn(2, 5, h, w, dtype=torch.float64).to(memory_format=memory_format)
        for h, w in ((6, 7), (3, 4), (1, 1))
    ]
    weight = torch.randn(11, 5, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(11, dtype=torch.float64, requires_grad=True)
    maps = [m.requires_grad_() for m in maps]
    grid = LocationGrid(2, [m.shape[-2:] for m in maps], (8, 16, 32), "cpu")
    dense = flatten_levels([F.conv2d(m, weight, bias, padding=1) for m in maps])
    for rows in (torch.arange(grid.num_rows), torch.tensor([3, 0, 3, grid.num_rows - 1])):
        picked = conv_at_rows(flatten_levels(maps), grid, rows, weight, bias)
        torch.testing.assert_close(picked, dense[rows])
        direction = torch.randn_like(picked)
        inputs = [*maps, weight, bias]
        expected = torch.autograd.grad((dense[rows] * direction).sum(), inputs, retain_graph=True)
        found = torch.autograd.grad((picked * direction).sum(), inputs)
        for a, b in zip(found, expected):
            torch.testing.assert_close(a, b)


def test_no_rows_still_reach_the_weights():
    features = torch.randn(1, 4, 5, 5).requires_grad_()
    weight = torch.randn(6, 4, 3, 3, requires_grad=True)
    grid = LocationGrid(1, [(5, 5)], (8,), "cpu")
    out = conv_at_rows(flatten_levels([features]), grid, torch.zeros(0, dtype=torch.int64), weight)
    assert out.shape == (0, 6)
    out.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))
