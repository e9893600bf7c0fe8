"""What blend_masks has beside the tests of every operator."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from instseg_d2 import ops
from instseg_d2.ops import reference
from tests.ops.blend_masks import BLEND_MASKS
from tests.ops.harness import assert_same, compiled, ways

arguments, gradients, oracle = BLEND_MASKS.arguments, BLEND_MASKS.gradients, BLEND_MASKS.oracle
both = ways("blend_masks")


@both
def test_hand_computed(op):
    # bases: the column number and its negative; the box covers cells 1..3 of 4, so its centres are columns 1 and 2
    ramp = torch.arange(4.0).repeat(4, 1)
    attention = torch.tensor([math.log(3.0), 0.0]).reshape(1, 2, 1, 1)  # softmax 3/4, 1/4
    box = torch.tensor([[4.0, 4.0, 12.0, 12.0]])
    out = op(torch.stack([ramp, -ramp])[None], box, torch.tensor([0]), attention, resolution=2)
    torch.testing.assert_close(out, torch.tensor([[[0.5, 1.0], [0.5, 1.0]]]))


@pytest.mark.parametrize("top_interp", ["bilinear", "nearest"])
def test_attention_is_resized_as_interpolate_does(top_interp):
    # With bases of 1 and 0 the logits are the sigmoid of the first attention minus the second.
    bases = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 6, 6)
    box, image = torch.tensor([[4.0, 4.0, 20.0, 20.0]]), torch.tensor([0])
    generator = torch.Generator().manual_seed(0)
    for size, resolution in itertools.product([1, 2, 3, 5, 7, 14, 28, 31], [*range(1, 33), 56, 57]):
        attention = torch.randn(1, 2, size, size, generator=generator)
        expected = F.interpolate(attention, size=(resolution, resolution), mode=top_interp)
        out = ops.blend_masks(bases, box, image, attention, resolution=resolution, top_interp=top_interp)
        assert_same([out], [(expected[:, 0] - expected[:, 1]).sigmoid()], 5e-6)


@both
def test_sharing_a_box_equals_repeating_it(op):
    inputs = arguments(boxes=4, masks=11)
    index = inputs.pop("box_index")
    repeated = {**inputs, "boxes": inputs["boxes"][index], "batch_index": inputs["batch_index"][index]}
    assert_same(gradients(op, {**inputs, "box_index": index}), gradients(op, repeated))


@both
def test_outside_the_image(op):
    inputs = arguments(boxes=6, bases=2)
    inputs["bases"].fill_(5.0)
    inputs["boxes"] = torch.tensor(
        [
            [-100.0, -100.0, -50.0, -50.0],  # wholly outside
            [500.0, 3.0, 900.0, 9.0],
            [-52.0, 0.0, 52.0, 36.0],  # the left half outside, but the border reaches one cell further
            [20.0, 20.0, 20.0, 20.0],  # no area: every sample in one place
            [40.0, 30.0, 10.0, 5.0],  # corners exchanged: read backwards
            [-1e30, -1e30, 1e30, 1e30],
        ]
    )
    out = op(**inputs, resolution=4)
    assert torch.equal(out[:2], torch.zeros(2, 4, 4))
    torch.testing.assert_close(out[2], torch.tensor([[0.0, 0.0, 5.0, 5.0]]).repeat(4, 1))
    torch.testing.assert_close(out[3:5], torch.full((2, 4, 4), 5.0))
    assert torch.equal(out[5], torch.zeros(4, 4))
    assert_same([out[:5]], [oracle(**inputs)[:5].float()])


@both
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("corner", range(4))
def test_box_that_is_not_finite_reads_nothing(op, value, corner):
    inputs = arguments()
    inputs["boxes"][2, corner] = value
    out, bases_grad, attention_grad = gradients(op, inputs, resolution=6)
    assert torch.equal(out[2], torch.zeros(6, 6))
    assert torch.equal(attention_grad[2], torch.zeros(3, 3, 3))
    kept = [0, 1, 3, 4]
    others = {name: value if name == "bases" else value[kept] for name, value in inputs.items()}
    grad = torch.randn(5, 6, 6, generator=torch.Generator().manual_seed(1))[kept]
    assert_same([out[kept], bases_grad], gradients(op, others, grad, resolution=6)[:2])


@both
def test_attention_of_any_size_of_number(op):
    inputs = arguments(bases=4, size=2)
    inputs["attention"] *= 1000
    out, bases_grad, attention_grad = gradients(op, inputs, resolution=5)
    assert_same([out], [oracle(**inputs, resolution=5).float()], 1e-4)
    assert bases_grad.isfinite().all()
    assert attention_grad.isfinite().all()
    inputs["attention"][1, 2] = math.nan
    assert op(**inputs, resolution=5)[1].isnan().any()


@pytest.mark.parametrize("top_interp", ["bilinear", "nearest"])
@pytest.mark.parametrize(("bases", "size"), [(1, 2), (2, 1), (3, 2), (4, 4), (3, 8)])
@pytest.mark.parametrize("name", ["bases", "attention"])
def test_what_is_not_read_does_not_matter(name, bases, size, top_interp):
    """
    A NaN or infinite cell changes only samples with a weight for it; an attention of -inf is a weight of 0.
    The boxes lie on the cells, so that every weight is exact.
    """
    inputs = arguments(boxes=6, bases=bases, size=size, dtype=torch.float64)
    inputs["boxes"] = torch.tensor(
        [[2, 2, 18, 18], [-14, 2, 18, 34], [0, 0, 16, 8], [-90, -90, -50, -50], [36, 20, 68, 36], [18, 10, 2, 2]]
    ).double()
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        values = inputs[name].clone()
        chosen = torch.rand(values.shape, generator=generator) < (0.03 if name == "bases" else 0.15)
        values[chosen] = -math.inf if name == "attention" and seed % 4 else (math.nan, math.inf)[seed % 2]
        expected = oracle(**{**inputs, name: values}, resolution=4, top_interp=top_interp)
        for op in (ops.blend_masks, reference.blend_masks):
            out = op(**{**inputs, name: values}, resolution=4, top_interp=top_interp)
            torch.testing.assert_close(out, expected, rtol=0, atol=1e-9, equal_nan=True)


@both
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradients_of_samples_outside_reach_no_base(op, value):
    inputs = arguments(boxes=2, bases=2)
    inputs["boxes"] = torch.tensor([[-52.0, -36.0, 52.0, 36.0], [20.0, 10.0, 90.0, 90.0]])
    outside = oracle(**{**inputs, "bases": torch.ones_like(inputs["bases"])}, resolution=6) == 0
    grad = torch.randn(2, 6, 6, generator=torch.Generator().manual_seed(0))
    expected = gradients(op, inputs, grad.masked_fill(outside, 0), resolution=6)[1]
    assert outside.any(2).any(1).all()
    assert not outside.all(2).all(1).any()
    assert_same([gradients(op, inputs, grad.masked_fill(outside, value), resolution=6)[1]], [expected], 0.0)


@both
def test_attention_of_minus_infinity_gets_no_gradient(op):
    inputs = arguments(bases=3, size=4)
    inputs["attention"][:, 1] = -math.inf
    _, bases_grad, attention_grad = gradients(op, inputs, resolution=4)
    assert bases_grad[:, [0, 2]].any()
    assert_same([bases_grad[:, 1], attention_grad[:, 1]], [torch.zeros(2, 9, 13), torch.zeros(5, 4, 4)], 1e-30)
    rest = {**inputs, "bases": inputs["bases"][:, [0, 2]], "attention": inputs["attention"][:, [0, 2]]}
    _, *expected = gradients(op, rest, resolution=4)
    assert_same([bases_grad[:, [0, 2]], attention_grad[:, [0, 2]]], expected)


@both
def test_images_and_boxes_nobody_refers_to(op):
    inputs = arguments(images=4, boxes=3)
    inputs["batch_index"] = torch.tensor([1, 3, 1])
    inputs["attention"], inputs["box_index"] = inputs["attention"][:2], torch.tensor([2, 0])
    out, bases_grad, _ = gradients(op, inputs, resolution=4)
    assert_same([out], [oracle(**inputs).float()])
    assert bases_grad[1].abs().sum() > 0
    assert not bases_grad[[0, 2, 3]].any()


@compiled
def test_boxes_get_no_gradient():
    inputs = arguments()
    for name in ("bases", "boxes", "attention"):
        inputs[name].requires_grad_()
    out = ops.blend_masks(**inputs)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(out.sum(), inputs["boxes"])


def test_the_plain_twin_has_second_derivatives():
    inputs = arguments(images=1, boxes=3, bases=2, size=2, dtype=torch.float64)
    leaves = [inputs[name].requires_grad_() for name in ("bases", "attention")]

    def call(bases, attention):
        return reference.blend_masks(**{**inputs, "bases": bases, "attention": attention}, resolution=3)

    assert torch.autograd.gradgradcheck(call, leaves)
