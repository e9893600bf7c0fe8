"""mask_prob against loops over objects and cells written from its definition, its plain twin, and at its edges."""

import itertools
import math
import subprocess
import sys

import pytest
import torch

from instseg_d2 import ops
from instseg_d2.ops import reference

compiled = pytest.mark.skipif(ops.has_extension() is None, reason="the package is built without its extension")
both = pytest.mark.parametrize("op", [ops.mask_prob, reference.mask_prob], ids=["op", "reference"])
FLOATS = ("pixel_embeddings", "proposal_embeddings", "margins")


def oracle(pixel_embeddings, proposal_embeddings, margins, windows, image_index):
    """One cell at a time in Python floats."""
    height, width = pixel_embeddings.shape[2:]
    pixels, proposals, margins = (t.double().tolist() for t in (pixel_embeddings, proposal_embeddings, margins))
    values = []
    for m, proposal in enumerate(proposals):
        x1, y1, x2, y2 = (0, 0, width, height) if windows is None else windows[m].tolist()
        for y, x in itertools.product(range(y1, y2), range(x1, x2)):
            total = 0.0
            for d, q in enumerate(proposal):
                margin = margins[m][d if len(margins[m]) > 1 else 0]
                total += margin * (pixels[int(image_index[m])][d][y][x] - q) ** 2
            values.append(-total)
    return torch.tensor(values, dtype=torch.float64)


def arguments(images=2, objects=6, dims=3, per_dim=True, whole=False, size=(9, 43), dtype=torch.float32, seed=0):
    """Random arguments; the windows of object 1 (without cells) and 2 (all of the map) touch every border."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    limits = torch.tensor([width, height])
    corners = (torch.rand(objects, 2, 2, generator=generator) * (limits + 1)).long().sort(dim=1).values
    windows = corners.flatten(1)
    if objects > 2:
        windows[1] = torch.tensor([width, height, width, height])
        windows[2] = torch.tensor([0, 0, width, height])
    return {
        "pixel_embeddings": torch.randn(images, dims, height, width, generator=generator).to(dtype),
        "proposal_embeddings": torch.randn(objects, dims, generator=generator).to(dtype),
        "margins": torch.rand(objects, dims if per_dim else 1, generator=generator).to(dtype),
        "windows": None if whole else windows,
        "image_index": torch.randint(images, (objects,), generator=generator),
    }


def gradients(op, inputs, grad=None):
    """The result and the gradients of embeddings and margins."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in FLOATS}
    out = op(**{**inputs, **leaves})
    if grad is None:
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return (out.detach(), *torch.autograd.grad(out, list(leaves.values()), grad))


def assert_same(actual, expected, tolerance=2e-5):
    for a, e in zip(actual, expected):
        assert a.dtype == e.dtype
        assert a.shape == e.shape
        scale = float(e.detach().abs().max()) if e.numel() else 1.0
        torch.testing.assert_close(a, e, rtol=0, atol=tolerance * max(scale, 1.0))


@both
@pytest.mark.parametrize("dims", [1, 2, 16])
@pytest.mark.parametrize("per_dim", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_equals_loops_over_objects_and_cells(op, dims, per_dim, whole):
    inputs = arguments(dims=dims, per_dim=per_dim, whole=whole, dtype=torch.float64)
    out = op(**inputs)
    torch.testing.assert_close(out, oracle(**inputs), rtol=1e-12, atol=1e-12)
    if whole:
        assert out.shape == (6 * 9 * 43,)


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
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("dims", "per_dim"), [(1, True), (8, False), (16, True), (32, False)])
def test_kernel_equals_reference(layout, whole, dims, per_dim):
    inputs = arguments(images=3, objects=20, dims=dims, per_dim=per_dim, whole=whole, size=(24, 75))
    if layout == "channels_last":
        inputs["pixel_embeddings"] = inputs["pixel_embeddings"].to(memory_format=torch.channels_last)
    elif layout == "strided":
        pixels = inputs["pixel_embeddings"]
        inputs["pixel_embeddings"] = pixels.transpose(1, 3).repeat_interleave(2, dim=2)[:, :, ::2].transpose(3, 1)
        inputs["proposal_embeddings"] = inputs["proposal_embeddings"].T.contiguous().T
        inputs["margins"] = inputs["margins"].repeat_interleave(2, dim=0)[::2]
        inputs["image_index"] = inputs["image_index"].repeat_interleave(2)[::2]
        if not whole:
            inputs["windows"] = inputs["windows"].T.contiguous().T
    assert_same(gradients(ops.mask_prob, inputs), gradients(reference.mask_prob, inputs))


@compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("whole", [False, True])
def test_half_types_are_summed_in_float32(dtype, whole):
    inputs = arguments(objects=12, dims=16, whole=whole, dtype=dtype)
    wide = {k: v.float() if k in FLOATS else v for k, v in inputs.items()}
    out = reference.mask_prob(**wide)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    expected = gradients(reference.mask_prob, wide, grad.float())
    rounding = torch.finfo(dtype).eps  # of the result alone
    for op in (ops.mask_prob, reference.mask_prob):
        assert_same(gradients(op, inputs, grad), [t.to(dtype) for t in expected], rounding)


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
def test_mixed_types_are_promoted(op):
    inputs = arguments()
    inputs["pixel_embeddings"] = inputs["pixel_embeddings"].bfloat16()
    results = gradients(op, inputs)
    assert [t.dtype for t in results] == [torch.float32, torch.bfloat16, torch.float32, torch.float32]
    assert torch.equal(results[0], op(**{**inputs, "pixel_embeddings": inputs["pixel_embeddings"].float()}))


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_returns_the_type_of_its_input(op, dtype):
    inputs = arguments(dtype=dtype)
    plain = gradients(op, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = gradients(op, inputs)
    assert all(torch.equal(c, p) and c.dtype == dtype for c, p in zip(cast, plain))


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
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("images", [0, 2])
def test_no_objects(op, whole, images):
    inputs = arguments(images=2, objects=0, whole=whole)
    inputs["pixel_embeddings"] = inputs["pixel_embeddings"][:images]
    out, pixels_grad, proposals_grad, margins_grad = gradients(op, inputs)
    assert out.shape == (0,)
    assert torch.equal(pixels_grad, torch.zeros(images, 3, 9, 43))
    assert proposals_grad.shape == margins_grad.shape == (0, 3)


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
@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("pixel_embeddings", torch.zeros(3, 9, 43), ValueError, "pixel_embeddings should be"),
        ("pixel_embeddings", torch.zeros(2, 0, 9, 43), ValueError, "pixel_embeddings should be"),
        ("pixel_embeddings", torch.zeros(2, 3, 9, 0), ValueError, "pixel_embeddings should be"),
        ("proposal_embeddings", torch.zeros(6), ValueError, "proposal_embeddings should be"),
        ("proposal_embeddings", torch.zeros(6, 2), ValueError, "proposal_embeddings should be"),
        ("margins", torch.zeros(6), ValueError, "margins should be"),
        ("margins", torch.zeros(6, 2), ValueError, "margins should be"),
        ("margins", torch.zeros(5, 3), ValueError, "margins should be"),
        ("windows", torch.zeros(6, 4), ValueError, "windows should be"),
        ("windows", torch.zeros(6, 5, **INT), ValueError, "windows should be"),
        ("windows", torch.zeros(5, 4, **INT), ValueError, "windows should be"),
        ("windows", torch.tensor([[0, 0, 44, 9]] * 6), IndexError, r"windows.* \[0, 0, 44, 9\], it should be"),
        ("windows", torch.tensor([[0, 0, 43, 10]] * 6), IndexError, r"windows.* inside the map of 9 x 43"),
        ("windows", torch.tensor([[-1, 0, 43, 9]] * 6), IndexError, r"windows.* \[-1, 0, 43, 9\], it should be"),
        ("windows", torch.tensor([[0, -1, 43, 9]] * 6), IndexError, "windows.* it should be"),
        ("windows", torch.tensor([[9, 0, 8, 9]] * 6), IndexError, "windows.* it should be x1 <= x2"),
        ("windows", torch.tensor([[0, 9, 9, 8]] * 6), IndexError, "windows.* it should be"),
        ("image_index", torch.zeros(5, **INT), ValueError, "image_index should be"),
        ("image_index", torch.zeros(6), ValueError, "image_index should be"),
        ("image_index", torch.tensor([0, 1, 2, 0, 0, 0]), IndexError, "image_index.* 2, it should be"),
        ("image_index", torch.tensor([0, 1, 0, 0, 0, -1]), IndexError, "image_index.* -1, it should be"),
    ],
)
def test_bad_arguments_are_named(op, argument, value, error, message):
    with pytest.raises(error, match=f"mask_prob: {message}"):
        op(**{**arguments(), argument: value})


@both
def test_integer_embeddings_are_refused(op):
    inputs = {name: t.long() for name, t in arguments().items()}
    with pytest.raises(ValueError, match="mask_prob: pixel_embeddings should be floating-point"):
        op(**inputs)


def test_devices_have_to_agree():
    with pytest.raises(ValueError, match=r"mask_prob: margins is on meta, it should be on .* cpu"):
        reference.mask_prob(**{**arguments(), "margins": torch.zeros(6, 3, device="meta")})


@compiled
def test_backward_checks_the_length_of_its_gradient():
    inputs = arguments()
    with pytest.raises(ValueError, match="mask_prob: grad should have a value for each"):
        torch.ops.instseg_d2._mask_prob_backward(torch.zeros(3), *inputs.values())
    with pytest.raises(ValueError, match="mask_prob: grad should be"):
        torch.ops.instseg_d2._mask_prob_backward(torch.zeros(3, 1), *inputs.values())


@compiled
@pytest.mark.parametrize("per_dim", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_gradcheck(per_dim, whole):
    inputs = arguments(objects=4, dims=2, per_dim=per_dim, whole=whole, size=(3, 5), dtype=torch.float64)

    def call(*leaves):
        return ops.mask_prob(**{**inputs, **dict(zip(FLOATS, leaves))})

    assert torch.autograd.gradcheck(call, [inputs[name].requires_grad_() for name in FLOATS])


@compiled
def test_second_derivatives_are_refused():
    inputs = arguments()
    for name in FLOATS:
        inputs[name].requires_grad_()
    (first,) = torch.autograd.grad(ops.mask_prob(**inputs).sum(), inputs["margins"], create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once only"):
        torch.autograd.grad(first.square().sum(), inputs["pixel_embeddings"])


@compiled
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(whole, dtype):
    inputs = arguments(whole=whole, dtype=dtype)
    inputs["pixel_embeddings"] = inputs["pixel_embeddings"].to(memory_format=torch.channels_last)
    out = ops.mask_prob(**inputs)
    torch.library.opcheck(torch.ops.instseg_d2._mask_prob_backward.default, (torch.randn_like(out), *inputs.values()))
    for name in FLOATS:
        inputs[name].requires_grad_()
    torch.library.opcheck(torch.ops.instseg_d2.mask_prob.default, tuple(inputs.values()))


@compiled
@pytest.mark.parametrize("whole", [False, True])
def test_compiles_into_one_graph(whole):
    inputs = arguments(whole=whole)
    compiled_op = torch.compile(ops.mask_prob, backend="aot_eager", fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        assert_same(gradients(compiled_op, inputs), gradients(ops.mask_prob, inputs), 0.0)


@compiled
@pytest.mark.parametrize("whole", [False, True])
def test_results_do_not_depend_on_the_threads(whole):
    inputs = arguments(images=2, objects=40, dims=7, whole=whole, size=(60, 70))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 2):
            torch.set_num_threads(threads)
            results.append(gradients(ops.mask_prob, inputs))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_same(result, results[0], 0.0)


PEAK = """
import resource, torch
from instseg_d2 import ops
torch.set_num_threads(2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def run(objects, height, width, dims):
    tensors = [torch.zeros(s, requires_grad=True) for s in ((1, dims, height, width), (objects, dims), (objects, 1))]
    image, grad = torch.zeros(objects, dtype=torch.int64), torch.zeros(objects * height * width) + 1
    before = peak()
    out = ops.mask_prob(*tensors, None, image)
    after = peak()
    out.backward(grad)
    return after - before, peak() - after
run(9, 20, 20, 16)
print(*run(60, 200, 336, 16))
"""


@compiled
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux reports it")
def test_temporaries_are_small():
    done = subprocess.run([sys.executable, "-c", PEAK], stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    forward, backward = map(int, done.stdout.split())
    output, pixels = 60 * 200 * 336 * 4, 16 * 200 * 336 * 4
    assert forward < 1.2 * output  # the output itself, and next to nothing: the broadcast formula takes 16 of them
    assert backward < pixels + 0.2 * output


@pytest.mark.parametrize("requires_grad", [False, True])
def test_without_the_extension(monkeypatch, requires_grad):
    inputs = arguments()
    inputs["margins"].requires_grad_(requires_grad)
    expected = ops.mask_prob(**inputs)
    calls = []
    monkeypatch.setattr("instseg_d2.ops.extension._BUILT_FOR", None)
    plain = reference.mask_prob
    monkeypatch.setattr(reference, "mask_prob", lambda *a: calls.append(1) or plain(*a))
    assert_same([ops.mask_prob(**inputs)], [expected])
    assert calls == [1]


def test_benchmark_compares_the_same_values():
    from projects.benchmarks import operators as benchmark

    inputs = benchmark.mask_prob_inputs()
    inside, whole = ops.mask_prob(**inputs), benchmark.mask_prob_products(**inputs).view(100, 200, 336)
    for m in (0, 50, 99):
        x1, y1, x2, y2 = inputs["windows"][m].tolist()
        first, last = ops.window_offsets(inputs["windows"])[m : m + 2]
        torch.testing.assert_close(inside[first:last], whole[m, y1:y2, x1:x2].flatten(), rtol=0, atol=1e-3)


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


cuda = pytest.mark.skipif(
    not torch.cuda.is_available() or ops.has_extension() != "cuda", reason="needs a GPU and the extension built for it"
)


def on_gpu(inputs):
    return {name: None if t is None else t.cuda() for name, t in inputs.items()}


@pytest.mark.gpu
@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("dims", "per_dim", "objects"), [(1, True, 7), (8, False, 300), (16, True, 20), (19, True, 3)])
def test_cuda_equals_cpu(dtype, whole, dims, per_dim, objects):
    inputs = arguments(images=3, objects=objects, dims=dims, per_dim=per_dim, whole=whole, size=(37, 75), dtype=dtype)
    inputs["pixel_embeddings"] = inputs["pixel_embeddings"].to(memory_format=torch.channels_last)
    out = ops.mask_prob(**inputs)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    actual = gradients(ops.mask_prob, on_gpu(inputs), grad.cuda())
    tolerance = {torch.float64: 1e-10}.get(dtype, 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 5e-5)
    assert_same([t.cpu() for t in actual], gradients(ops.mask_prob, inputs, grad), tolerance)
    assert_same(gradients(ops.mask_prob, on_gpu(inputs), grad.cuda()), actual, 0.0)  # deterministic


@pytest.mark.gpu
@cuda
def test_cuda_names_bad_arguments():
    inputs = on_gpu(arguments())
    with pytest.raises(ValueError, match=r"mask_prob: windows is on cpu, it should be on .* cuda"):
        ops.mask_prob(**{**inputs, "windows": inputs["windows"].cpu()})
    with pytest.raises(IndexError, match=r"mask_prob: windows\[0\] is \[0, 0, 44, 9\]"):
        ops.mask_prob(**{**inputs, "windows": torch.tensor([[0, 0, 44, 9]] * 6).cuda()})
