"""Linear layers as convolutions."""

import pytest
import torch
from torch import nn

from instseg_d2.layers import ConvolvedLinear


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_linear_layers_as_convolutions(rows):
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 9), torch.randn(rows, 6)
    found = ConvolvedLinear(layer)(x)
    assert found.shape == (rows, 9)
    assert found.is_contiguous()
    torch.testing.assert_close(found, x @ layer.weight.T + layer.bias)
