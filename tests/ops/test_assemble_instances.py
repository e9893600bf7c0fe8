"""What assemble_instances has beside the tests of every operator."""

import pytest
import torch

from instseg_d2 import ops
from tests.ops.assemble_instances import ASSEMBLE_INSTANCES
from tests.ops.harness import assert_same, ways

NAME = "assemble_instances"
arguments, gradients, oracle = ASSEMBLE_INSTANCES.arguments, ASSEMBLE_INSTANCES.gradients, ASSEMBLE_INSTANCES.oracle
both = ways(NAME)


@both
def test_hand_computed(op):
    # 2 x 2 maps that are constant 0, 1, 2, 3; a window of 3 starts one row above the map. ceil(3 / 2) = 2 cells of
    # part 0, then 1 of part 1.
    maps = torch.arange(4.0).reshape(1, 4, 1, 1).expand(1, 4, 5, 5)
    out = op(maps, torch.tensor([[0, -1, 1]]), 3, 2)
    assert out.tolist() == [[[-10, -10, -10], [0, 0, 1], [2, 2, 3]]]


@both
def test_gradient_equals_loops(op):
    inputs = arguments(windows=20, mask_size=8, grid=3, dtype=torch.float64)
    grad = torch.randn(20, 8, 8, dtype=torch.float64)
    maps = inputs["score_maps"].clone().requires_grad_()
    (expected,) = torch.autograd.grad(oracle(**{**inputs, "score_maps": maps}), maps, grad)
    assert_same([gradients(op, inputs, grad)[1]], [expected], 1e-12)


@both
@pytest.mark.parametrize("far", [15, 2**31, -(2**31) - 5, 2**62, -(2**63), 2**63 - 1])
def test_windows_far_outside(op, far):
    inputs = arguments()
    windows = torch.tensor([[0, far, 2], [1, 2, far], [1, far, far]])
    out, maps_grad = gradients(op, {**inputs, "windows": windows})
    assert torch.equal(out, torch.full((3, 7, 7), -10.0))
    assert not maps_grad.any()


def test_integer_maps_are_refused():
    with pytest.raises((NotImplementedError, ValueError), match=NAME):
        ops.assemble_instances(**{**arguments(), "score_maps": torch.zeros(2, 9, 11, 14, dtype=torch.int64)})
