"""What mask_prob has beside the tests of every operator, and the windows that go with it."""

import math
from functools import partial

import pytest
import torch

from instseg_d2 import ops
from tests.ops.harness import assert_same, compiled, cuda, ways
from tests.ops.mask_prob import MASK_PROB

FLOATS = MASK_PROB.leaves
arguments, gradients, oracle = MASK_PROB.arguments, MASK_PROB.gradients, MASK_PROB.oracle
both = ways("mask_prob")


@both
def test_hand_computed(op):
    # cells 0..5 of one dimension, the column number; an object at 2 sees columns 1..3 of the second row
    pixels = torch.arange(6.0).repeat(2, 1)[None, None]
    inputs = {
        "pixel_embeddings": torch.cat([pixels, 2 * pixels], dim=1),
        "proposal_embeddings": torch.tensor([[2.0, 4.0]]),
        "windows": torch.tensor([[1, 1, 4, 2]]),
        "image_index": torch.tensor([0]),
    }
    # squared differences: 1 and 4, none, 1 and 4
    assert op(margins=torch.tensor([[0.5]]), **inputs).tolist() == [-2.5, 0.0, -2.5]
    assert op(margins=torch.tensor([[0.5, 0.25]]), **inputs).tolist() == [-1.5, 0.0, -1.5]


@pytest.mark.parametrize("per_dim", [False, True])
@both
def test_gradients_by_hand(op, per_dim):
    # one cell, seen by two objects
    inputs = {
        "pixel_embeddings": torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1),
        "proposal_embeddings": torch.tensor([[0.0, 1.0], [3.0, -1.0]]),
        "margins": torch.tensor([[1.0, 1.0], [0.5, 0.5]])[:, : 1 + per_dim],
        "windows": None,
        "image_index": torch.tensor([0, 0]),
    }
    out, pixels, proposals, margins = gradients(op, inputs, torch.tensor([1.0, 10.0]))
    assert out.tolist() == [-5.0, -2.0]
    assert pixels.flatten().tolist() == [-2.0 + 20.0, 4.0]
    assert proposals.tolist() == [[2.0, -4.0], [-20.0, 0.0]]
    assert margins.tolist() == ([[-1.0, -4.0], [-40.0, 0.0]] if per_dim else [[-5.0], [-40.0]])


@compiled
@pytest.mark.parametrize("dims", [8, 16, 32])
@pytest.mark.parametrize("per_dim", [False, True])
def test_errors_are_at_most_those_of_the_broadcast_formula(dims, per_dim):
    """
    Results and gradients in float32 against float64, over all seeds: the mean error is not above the one of the
    broadcast formula, nor is the largest relative error by more than one rounding. Every summand has the same sign and
    about four roundings, so that one more or less, as with fused additions or without, is a quarter.
    """
    errors = {"kernel": [], "broadcast": []}
    for seed in range(4):
        inputs = arguments(objects=5, dims=dims, per_dim=per_dim, whole=True, size=(64, 65), seed=seed)
        grad = torch.randn(5 * 64 * 65, generator=torch.Generator().manual_seed(seed))
        doubled = {name: x.double() if name in FLOATS else x for name, x in inputs.items()}
        exact = gradients(oracle_whole, doubled, grad.double())
        for name, op in (("kernel", ops.mask_prob), ("broadcast", oracle_whole)):
            found = gradients(op, inputs, grad)
            errors[name].append([(a.double() - e).abs() for a, e in zip(found, exact)] + [exact[0].abs()])
    kernel, broadcast = ([torch.cat(parts) for parts in zip(*errors[name])] for name in errors)
    for ours, theirs in zip(kernel[:4], broadcast[:4]):
        assert ours.mean() <= theirs.mean()
    assert (kernel[0] / kernel[4]).max() <= 1.25 * (broadcast[0] / broadcast[4]).max()


def oracle_whole(pixel_embeddings, proposal_embeddings, margins, windows, image_index):
    differences = pixel_embeddings[image_index] - proposal_embeddings[:, :, None, None]
    return -(margins[:, :, None, None] * differences**2).sum(dim=1).flatten()


@both
def test_whole_map_equals_windows_of_the_whole_map(op):
    inputs = arguments(whole=True)
    windows = torch.tensor([[0, 0, 43, 9]]).repeat(6, 1)
    assert_same(gradients(op, inputs), gradients(op, {**inputs, "windows": windows}), 0.0)


@both
def test_windows_of_every_width_at_every_place(op):
    inputs = arguments(images=1, objects=1, dims=2, size=(2, 70))
    (whole,) = op(**{**inputs, "windows": None}).view(1, 2, 70)
    spans = [(first, last) for first in (0, 1, 3, 35) for last in range(first, 71)]
    many = {name: inputs[name].expand(len(spans), -1) for name in ("proposal_embeddings", "margins")}
    many["windows"] = torch.tensor([[first, 1, last, 2] for first, last in spans])
    many["image_index"] = torch.zeros(len(spans), dtype=torch.int64)
    out = op(**{**inputs, **many})
    assert torch.equal(out, torch.cat([whole[1, first:last] for first, last in spans]))


@both
def test_cells_outside_the_windows_are_not_touched(op):
    inputs = arguments(images=1, objects=1)
    inputs["windows"] = torch.tensor([[5, 2, 30, 6]])
    clean = gradients(op, inputs)
    outside = torch.ones(9, 43, dtype=torch.bool)
    outside[2:6, 5:30] = False
    inputs["pixel_embeddings"][:, :, outside] = math.nan
    results = gradients(op, inputs)
    assert_same(results, clean, 0.0)
    assert not results[1][:, :, outside].any()


@both
def test_nan_stays_with_its_object(op):
    inputs = arguments(whole=True)
    inputs["proposal_embeddings"][3, 1] = math.nan
    out, _, proposals_grad, margins_grad = gradients(op, inputs)
    hit = torch.arange(6) == 3
    assert torch.equal(out.view(6, -1).isnan().any(dim=1), hit)
    assert torch.equal(proposals_grad.isnan().any(dim=1), hit)
    assert torch.equal(margins_grad.isnan().any(dim=1), hit)


@both
@pytest.mark.parametrize("per_dim", [False, True])
def test_windows_without_cells(op, per_dim):
    inputs = arguments(per_dim=per_dim)
    inputs["windows"] = torch.tensor([[0, 0, 0, 9], [43, 9, 43, 9], [5, 3, 9, 3], [7, 0, 7, 9], [1, 1, 1, 1], [0] * 4])
    out, *grads = gradients(op, inputs)
    assert out.shape == (0,)
    assert not any(grad.any() for grad in grads)
    inputs["windows"][4] = torch.tensor([2, 3, 6, 5])
    out, pixels_grad, proposals_grad, margins_grad = gradients(op, inputs)
    assert_same([out], [oracle(**inputs).float()])
    assert pixels_grad[inputs["image_index"][4], :, 3:5, 2:6].all()
    assert torch.equal(proposals_grad.any(dim=1), torch.arange(6) == 4)
    assert torch.equal(margins_grad.any(dim=1), torch.arange(6) == 4)


@both
def test_images_nobody_refers_to(op):
    inputs = arguments(images=4)
    inputs["image_index"] = torch.tensor([1, 3, 1, 1, 1, 1])
    out, pixels_grad, *_ = gradients(op, inputs)
    assert_same([out], [oracle(**inputs).float()])
    assert pixels_grad[1].all()  # object 2 covers the map
    assert not pixels_grad[[0, 2, 3]].any()


INT = {"dtype": torch.int64}


@both
def test_integer_embeddings_are_refused(op):
    inputs = {name: t.long() for name, t in arguments().items()}
    with pytest.raises(ValueError, match="mask_prob: pixel_embeddings should be floating-point"):
        op(**inputs)


@compiled
@pytest.mark.parametrize("whole", [False, True])
def test_backward_checks_what_the_forward_pass_gave(whole):
    inputs = arguments(whole=whole)
    values, offsets = torch.ops.instseg_d2.mask_prob(*inputs.values())
    assert offsets.tolist() == ([] if whole else ops.window_offsets(inputs["windows"]).tolist())
    backward = partial(torch.ops.instseg_d2._mask_prob_backward, values)
    backward(*inputs.values(), offsets, len(values))
    for grad in (torch.zeros(3), torch.zeros(len(values) + 1)):
        with pytest.raises(ValueError, match="mask_prob: grad should have a value for each"):
            torch.ops.instseg_d2._mask_prob_backward(grad, *inputs.values(), offsets, len(values))
    with pytest.raises(ValueError, match="mask_prob: grad should be"):
        torch.ops.instseg_d2._mask_prob_backward(values[:, None], *inputs.values(), offsets, len(values))
    for wrong in (offsets.new_zeros(6), offsets.int()):
        with pytest.raises(ValueError, match="mask_prob: offsets should be"):
            backward(*inputs.values(), wrong, len(values))


def test_window_offsets():
    windows = torch.tensor([[0, 0, 3, 2], [4, 4, 4, 9], [1, 2, 6, 3]])
    assert ops.window_offsets(windows).tolist() == [0, 6, 6, 11]
    assert ops.window_offsets(windows[:0]).tolist() == [0]
    inputs = arguments()
    offsets = ops.window_offsets(inputs["windows"])
    out = ops.mask_prob(**inputs)
    assert offsets[-1] == len(out)
    x1, y1, x2, y2 = inputs["windows"][3].tolist()
    whole = ops.mask_prob(**{**inputs, "windows": None}).view(6, 9, 43)
    assert torch.equal(out[offsets[3] : offsets[4]].view(y2 - y1, x2 - x1), whole[3, y1:y2, x1:x2])


def test_grown_windows():
    boxes = torch.tensor(
        [
            [2.0, 3.0, 5.0, 6.0],
            [2.1, 3.9, 5.0, 6.5],
            [-50.0, 4.0, 500.0, 5.0],  # clamped to the map
            [30.0, 4.0, 40.0, 5.0],  # wholly outside
            [-9.0, -9.0, -8.0, -8.0],
            [5.0, 6.0, 2.0, 3.0],  # corners exchanged
            [math.nan, 0.0, 9.0, 9.0],
            [0.0, 0.0, math.inf, 9.0],
        ]
    )
    expected = [[1, 2, 6, 7], [2, 3, 6, 8], [0, 3, 20, 6], [20, 3, 20, 6], [0, 0, 0, 0], [4, 5, 4, 5], [0] * 4]
    expected.append([0, 0, 20, 10])
    windows = ops.grown_windows(boxes, 1.0, height=12, width=20)
    assert windows.tolist() == expected
    assert windows.dtype == torch.int64
    assert ops.grown_windows(boxes[:0], 1.0, 12, 20).shape == (0, 4)


@pytest.mark.parametrize("padding", [0.0, 0.3, 1.0, 2.5])
def test_grown_windows_hold_the_cells_of_their_definition(padding):
    generator = torch.Generator().manual_seed(0)
    boxes = (torch.rand(50, 4, generator=generator) * 40 - 10).round(decimals=1)
    for box, window in zip(boxes, ops.grown_windows(boxes, padding, 17, 23)):
        for axis, extent in ((0, 23), (1, 17)):
            first, last = box[axis] - padding, box[axis + 2] + padding
            cells = [c for c in range(extent) if first <= c < last]
            assert list(range(int(window[axis]), int(window[axis + 2]))) == cells


@pytest.mark.gpu
@cuda
def test_cuda_names_a_bad_window():
    inputs = {name: value.cuda() for name, value in arguments().items()}
    with pytest.raises(IndexError, match=r"mask_prob: windows\[0\] is \[0, 0, 44, 9\]"):
        ops.mask_prob(**{**inputs, "windows": torch.tensor([[0, 0, 44, 9]] * 6).cuda()})
