"""blend_masks against pixel loops written from its definition, against its plain PyTorch twin, and at its edges."""

import itertools
import math
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from instseg_d2 import ops
from instseg_d2.ops import reference

compiled = pytest.mark.skipif(ops.has_extension() is None, reason="the package is built without its extension")
both = pytest.mark.parametrize("op", [ops.blend_masks, reference.blend_masks], ids=["op", "reference"])


def tent_read(plane, y, x):
    """Bilinear value at (y, x) of a plane that continues its border, by the tent function of every cell."""
    height, width = len(plane), len(plane[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    return sum(
        plane[i][j] * max(0.0, 1 - abs(y - i)) * max(0.0, 1 - abs(x - j)) for i in range(height) for j in range(width)
    )


def oracle(
    bases, boxes, batch_index, attention, box_index=None, resolution=4, spatial_scale=0.25, top_interp="bilinear"
):
    """One pixel at a time in Python floats."""
    size = attention.shape[-1]
    bases, boxes, attention = (t.double().tolist() for t in (bases, boxes, attention))
    masks = []
    for p, maps in enumerate(attention):
        m = p if box_index is None else int(box_index[p])
        x1, y1, x2, y2 = (v * spatial_scale - 0.5 for v in boxes[m])
        planes = bases[int(batch_index[m])]
        height, width = len(planes[0]), len(planes[0][0])
        mask = [[0.0] * resolution for _ in range(resolution)]
        for i, j in itertools.product(range(resolution), repeat=2):
            y = y1 + (i + 0.5) * (y2 - y1) / resolution
            x = x1 + (j + 0.5) * (x2 - x1) / resolution
            if not (-1 <= y <= height and -1 <= x <= width):
                continue
            if top_interp == "nearest":
                logits = [plane[i * size // resolution][j * size // resolution] for plane in maps]
            else:
                v, u = ((c + 0.5) * size / resolution - 0.5 for c in (i, j))
                logits = [tent_read(plane, v, u) for plane in maps]
            top = max(logits)
            weights = [math.exp(logit - top) for logit in logits]
            values = [tent_read(plane, y, x) for plane in planes]
            mask[i][j] = sum(w * v for w, v in zip(weights, values)) / sum(weights)
        masks.append(mask)
    return torch.tensor(masks, dtype=torch.float64).reshape(-1, resolution, resolution)


def arguments(images=2, boxes=5, masks=None, bases=3, size=3, dtype=torch.float32, seed=0):
    """Random arguments; the boxes reach over every border of the 52 x 36 pixels that the bases cover."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(boxes, 2, generator=generator) * 50 - 15
    inputs = {
        "bases": torch.randn(images, bases, 9, 13, generator=generator).to(dtype),
        "boxes": torch.cat([corners, corners + 3 + torch.rand(boxes, 2, generator=generator) * 40], dim=1),
        "batch_index": torch.randint(images, (boxes,), generator=generator),
        "attention": (2 * torch.randn(masks or boxes, bases, size, size, generator=generator)).to(dtype),
    }
    if masks is not None:
        inputs["box_index"] = torch.randint(boxes, (masks,), generator=generator)
    return inputs


def gradients(op, inputs, grad=None, **options):
    """The output and the gradients of the bases and the attention."""
    leaves = {name: inputs[name].detach().requires_grad_() for name in ("bases", "attention")}
    out = op(**{**inputs, **leaves}, **options)
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
@pytest.mark.parametrize("top_interp", ["bilinear", "nearest"])
@pytest.mark.parametrize(("bases", "size", "resolution"), [(1, 3, 4), (2, 1, 5), (3, 4, 4), (4, 2, 7), (5, 7, 3)])
@pytest.mark.parametrize("masks", [None, 8])
def test_equals_pixel_loops(op, top_interp, bases, size, resolution, masks):
    inputs = arguments(bases=bases, size=size, masks=masks, dtype=torch.float64)
    options = {"resolution": resolution, "top_interp": top_interp}
    out = op(**inputs, **options)
    torch.testing.assert_close(out, oracle(**inputs, **options), rtol=0, atol=1e-6)  # boxes come in float32


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


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("top_interp", ["bilinear", "nearest"])
@pytest.mark.parametrize(
    ("bases", "size", "resolution"), [(1, 14, 28), (4, 14, 56), (4, 1, 28), (8, 28, 28), (64, 7, 9)]
)
def test_kernel_equals_reference(layout, top_interp, bases, size, resolution):
    inputs = arguments(images=3, boxes=12, masks=30, bases=bases, size=size)
    inputs["boxes"] *= 0.7
    if layout == "channels_last":
        for name in ("bases", "attention"):
            inputs[name] = inputs[name].to(memory_format=torch.channels_last)
    elif layout == "strided":
        for name in ("bases", "attention"):
            inputs[name] = inputs[name].transpose(1, 3).repeat_interleave(2, dim=2)[:, :, ::2].transpose(3, 1)
        inputs["boxes"] = inputs["boxes"].T.contiguous().T
        inputs["batch_index"] = inputs["batch_index"].repeat_interleave(2)[::2]
        inputs["box_index"] = inputs["box_index"].repeat_interleave(2)[::2]
    options = {"resolution": resolution, "top_interp": top_interp}
    assert_same(gradients(ops.blend_masks, inputs, **options), gradients(reference.blend_masks, inputs, **options))


@compiled
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_summed_in_float32(dtype):
    inputs = arguments(masks=40, bases=4, size=14, dtype=dtype)
    wide = {k: v.float() if v.dtype == dtype else v for k, v in inputs.items()}
    grad = torch.randn(40, 28, 28).to(dtype)
    expected = gradients(reference.blend_masks, wide, grad.float(), resolution=28)
    rounding = torch.finfo(dtype).eps  # of the result alone
    for op in (ops.blend_masks, reference.blend_masks):
        actual = gradients(op, inputs, grad, resolution=28)
        assert_same(actual, [t.to(dtype) for t in expected], rounding)


@both
def test_mixed_types_are_promoted(op):
    inputs = arguments()
    inputs["attention"] = inputs["attention"].bfloat16()
    out, bases_grad, attention_grad = gradients(op, inputs)
    assert (out.dtype, bases_grad.dtype, attention_grad.dtype) == (torch.float32, torch.float32, torch.bfloat16)
    expected = op(**{**inputs, "attention": inputs["attention"].float()})
    assert torch.equal(out, expected)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_returns_the_type_of_its_input(op, dtype):
    inputs = arguments(dtype=dtype)
    plain = gradients(op, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = gradients(op, inputs)
    assert all(torch.equal(c, p) and c.dtype == dtype for c, p in zip(cast, plain))


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


@both
@pytest.mark.parametrize(
    ("images", "boxes", "masks"), [(2, 0, None), (0, 0, None), (2, 0, 0), (2, 3, 0)], ids=["M=0", "N=0", "M=P=0", "P=0"]
)
def test_empty(op, images, boxes, masks):
    inputs = arguments()
    inputs["bases"] = inputs["bases"][:images]
    inputs["boxes"], inputs["batch_index"] = inputs["boxes"][:boxes], inputs["batch_index"][:boxes]
    inputs["attention"] = inputs["attention"][:0]
    if masks is not None:
        inputs["box_index"] = torch.zeros(0, dtype=torch.int64)
    out, bases_grad, attention_grad = gradients(op, inputs)
    assert out.shape == (0, 56, 56)
    assert torch.equal(bases_grad, torch.zeros(images, 3, 9, 13))
    assert attention_grad.shape == (0, 3, 3, 3)


@both
def test_images_and_boxes_nobody_refers_to(op):
    inputs = arguments(images=4, boxes=3)
    inputs["batch_index"] = torch.tensor([1, 3, 1])
    inputs["attention"], inputs["box_index"] = inputs["attention"][:2], torch.tensor([2, 0])
    out, bases_grad, _ = gradients(op, inputs, resolution=4)
    assert_same([out], [oracle(**inputs).float()])
    assert bases_grad[1].abs().sum() > 0
    assert not bases_grad[[0, 2, 3]].any()


@both
@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("bases", torch.zeros(3, 9, 13), ValueError, "bases should be"),
        ("bases", torch.zeros(2, 3, 0, 13), ValueError, "bases should be"),
        ("boxes", torch.zeros(5, 5), ValueError, "boxes should be"),
        ("boxes", torch.zeros(5, 4, dtype=torch.int64), ValueError, "boxes should be"),
        ("batch_index", torch.zeros(4, dtype=torch.int64), ValueError, "batch_index should be"),
        ("batch_index", torch.zeros(5), ValueError, "batch_index should be"),
        ("batch_index", torch.tensor([0, 1, 2, 0, 0]), IndexError, "batch_index.* 2, it should be"),
        ("batch_index", torch.tensor([0, 1, -1, 0, 0]), IndexError, "batch_index.* -1, it should be"),
        ("attention", torch.zeros(5, 2, 3, 3), ValueError, "attention should be"),
        ("attention", torch.zeros(5, 3, 3, 4), ValueError, "attention should be"),
        ("attention", torch.zeros(4, 3, 3, 3), ValueError, "without box_index, attention should have"),
        ("box_index", torch.zeros(4, dtype=torch.int64), ValueError, "box_index should be"),
        ("box_index", torch.zeros(5, dtype=torch.int32), ValueError, "box_index should be"),
        ("box_index", torch.tensor([0, 5, 0, 0, 0]), IndexError, "box_index.* 5, it should be"),
        ("box_index", torch.tensor([0, -1, 0, 0, 0]), IndexError, "box_index.* -1, it should be"),
        ("resolution", 0, ValueError, "resolution should be"),
        ("top_interp", "bicubic", ValueError, "top_interp should be"),
    ],
)
def test_bad_arguments_are_named(op, argument, value, error, message):
    with pytest.raises(error, match=f"blend_masks: {message}"):
        op(**{**arguments(), argument: value})


def test_devices_have_to_agree():
    with pytest.raises(ValueError, match=r"blend_masks: boxes is on meta, it should be on .* cpu"):
        reference.blend_masks(**{**arguments(), "boxes": torch.zeros(5, 4, device="meta")})


@compiled
@pytest.mark.parametrize("top_interp", ["bilinear", "nearest"])
@pytest.mark.parametrize(("bases", "size", "masks"), [(1, 2, None), (2, 3, 5), (3, 5, None)])
def test_gradcheck(top_interp, bases, size, masks):
    inputs = arguments(images=1, boxes=3, masks=masks, bases=bases, size=size, dtype=torch.float64)

    def call(maps, attention):
        return ops.blend_masks(**{**inputs, "bases": maps, "attention": attention}, resolution=4, top_interp=top_interp)

    leaves = [inputs[name].requires_grad_() for name in ("bases", "attention")]
    assert torch.autograd.gradcheck(call, leaves)


@compiled
def test_boxes_get_no_gradient_and_second_derivatives_are_refused():
    inputs = arguments()
    for name in ("bases", "boxes", "attention"):
        inputs[name].requires_grad_()
    out = ops.blend_masks(**inputs)
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(out.sum(), inputs["boxes"], retain_graph=True)
    (first,) = torch.autograd.grad(out.sum(), inputs["bases"], create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once only"):
        torch.autograd.grad(first.square().sum(), inputs["attention"])


@compiled
@pytest.mark.parametrize("masks", [None, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(masks, dtype):
    inputs = arguments(masks=masks, dtype=dtype)
    bases, attention = inputs["bases"].requires_grad_(), inputs["attention"].requires_grad_()
    tensors = (bases, inputs["boxes"], inputs["batch_index"], attention, inputs.get("box_index"))
    torch.library.opcheck(torch.ops.instseg_d2.blend_masks.default, (*tensors, 8, 0.25, False))
    tensors = [t.detach() if t is not None else None for t in tensors]
    grad = torch.randn(attention.shape[0], 8, 8).to(dtype)
    torch.library.opcheck(torch.ops.instseg_d2._blend_masks_backward.default, (grad, *tensors, 0.25, True))


@compiled
def test_compiles_into_one_graph():
    inputs = arguments(masks=7)
    whole = torch.compile(ops.blend_masks, backend="aot_eager", fullgraph=True, dynamic=True)
    assert_same(gradients(whole, inputs), gradients(ops.blend_masks, inputs), 0.0)


@compiled
def test_gradients_do_not_depend_on_the_threads():
    inputs = arguments(images=1, boxes=9, masks=50, bases=4, size=7)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(ops.blend_masks, inputs, resolution=28))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_same(result, results[0], 0.0)


PEAK = """
import resource, torch
from instseg_d2 import ops
torch.set_num_threads(2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def run(masks, boxes):
    bases = torch.zeros(1, 4, 200, 272, requires_grad=True)
    attention = torch.zeros(masks, 4, 14, 14, requires_grad=True)
    box, image = torch.tensor([[9., 9., 700., 500.]] * boxes), torch.zeros(boxes, dtype=torch.int64)
    grad, index = torch.zeros(masks, 56, 56) + 1, torch.arange(masks) % boxes
    before = peak()
    out = ops.blend_masks(bases, box, image, attention, box_index=index)
    after = peak()
    out.backward(grad)
    return after - before, peak() - after
run(50, 50)
print(*run({masks}, {boxes}))
"""


@compiled
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux reports it")
@pytest.mark.parametrize("boxes", [50, 4000])
def test_temporaries_are_small(boxes):
    code = PEAK.replace("{masks}", "4000").replace("{boxes}", str(boxes))
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    forward, backward = map(int, done.stdout.split())
    output, attention = 4000 * 56 * 56 * 4, 4000 * 4 * 14 * 14 * 4
    assert forward < 1.2 * output  # the output itself, and next to nothing
    assert backward < attention + 0.5 * output


@pytest.mark.parametrize("requires_grad", [False, True])
def test_without_the_extension(monkeypatch, requires_grad):
    inputs = arguments()
    inputs["bases"].requires_grad_(requires_grad)
    expected = ops.blend_masks(**inputs)
    calls = []
    monkeypatch.setattr("instseg_d2.ops.extension._BUILT_FOR", None)
    plain = reference.blend_masks
    monkeypatch.setattr(reference, "blend_masks", lambda *a, **k: calls.append(1) or plain(*a, **k))
    assert ops.has_extension() is None
    assert_same([ops.blend_masks(**inputs)], [expected])
    assert calls == [1]


def test_environment_variable_turns_the_extension_off():
    code = "from instseg_d2 import ops; print(ops.has_extension())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"INSTSEG_NO_EXT": "1"}, stdout=subprocess.PIPE, text=True, check=True
    )
    assert done.stdout.split() == ["None"]


@compiled
def test_benchmark_table():
    from projects.benchmarks import operators as benchmark

    rows = benchmark.op_table(repeats=1)
    assert [row.direction for row in rows] == ["forward", "forward+backward"] * (len(rows) // 2)
    assert {row.op for row in rows} == {"assemble_instances", "blend_masks", "mask_prob"}
    assert all(row.kernel_ms > 0 and row.ratio == row.reference_ms / row.kernel_ms for row in rows)
    assert len(benchmark.format_table(rows).splitlines()) == len(rows) + 1


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or ops.has_extension() != "cuda", reason="needs a GPU and the extension built for it"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("top_interp", ["bilinear", "nearest"])
@pytest.mark.parametrize(("bases", "size", "masks"), [(1, 14, None), (4, 14, 40), (4, 1, 7), (64, 28, 9)])
def test_cuda_equals_cpu(dtype, top_interp, bases, size, masks):
    inputs = arguments(boxes=7, masks=masks, bases=bases, size=size, dtype=dtype)
    inputs["boxes"][0, 0] = math.nan
    inputs["bases"] = inputs["bases"].to(memory_format=torch.channels_last)
    options = {"resolution": 28, "top_interp": top_interp}
    on_gpu = gradients(ops.blend_masks, {name: t.cuda() for name, t in inputs.items()}, **options)
    tolerance = {torch.float64: 1e-6}.get(dtype, 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 5e-5)
    assert_same([t.cpu() for t in on_gpu], gradients(ops.blend_masks, inputs, **options), tolerance)
    with pytest.raises(ValueError, match=r"blend_masks: boxes is on cpu, it should be on .* cuda"):
        ops.blend_masks(**{name: t if name == "boxes" else t.cuda() for name, t in inputs.items()})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_gradients_are_deterministic_on_request():
    inputs = {name: t.cuda() for name, t in arguments(boxes=7, masks=300, bases=4, size=14).items()}
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (gradients(ops.blend_masks, inputs) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(first, second, 0.0)
