"""assemble_instances against loops written from its definition, against its plain PyTorch twin, and at its edges."""

import subprocess
import sys

import pytest
import torch

from instseg_d2 import ops
from instseg_d2.ops import reference

compiled = pytest.mark.skipif(ops.has_extension() is None, reason="the package is built without its extension")
both = pytest.mark.parametrize("op", [ops.assemble_instances, reference.assemble_instances], ids=["op", "reference"])
NAME = "assemble_instances"


def oracle(score_maps, windows, mask_size, grid, outside=-10.0):
    """One cell at a time."""
    out = torch.full((len(windows), mask_size, mask_size), outside, dtype=score_maps.dtype)
    height, width = score_maps.shape[2:]
    for w, (image, top, left) in enumerate(windows.tolist()):
        for i in range(mask_size):
            for j in range(mask_size):
                if 0 <= top + i < height and 0 <= left + j < width:
                    part = (i * grid // mask_size) * grid + j * grid // mask_size
                    out[w, i, j] = score_maps[image, part, top + i, left + j]
    return out


def arguments(images=2, windows=9, mask_size=7, grid=3, dtype=torch.float32, seed=0):
    """Random arguments; the windows reach over every border of the 11 x 14 maps, two lie wholly outside."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(-mask_size + 1, 13, (windows, 2), generator=generator)
    corners[:2] = torch.tensor([[-mask_size, 3], [2, 14]])[:windows]
    image = torch.randint(images, (windows, 1), generator=generator)
    maps = torch.randn(images, grid * grid, 11, 14, generator=generator).to(dtype)
    return {
        "score_maps": maps,
        "windows": torch.cat([image, corners], dim=1),
        "mask_size": mask_size,
        "grid": grid,
    }


def gradients(op, inputs, grad=None, **options):
    """The output and the gradient of the maps."""
    maps = inputs["score_maps"].detach().requires_grad_()
    out = op(**{**inputs, "score_maps": maps}, **options)
    if grad is None:
        grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out.detach(), torch.autograd.grad(out, maps, grad)[0]


def assert_same(actual, expected, tolerance=1e-5):
    for a, e in zip(actual, expected):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a, e, rtol=0, atol=tolerance)


@both
@pytest.mark.parametrize(
    ("mask_size", "grid"), [(21, 3), (21, 5), (21, 7), (15, 3), (15, 5), (15, 7), (1, 1), (2, 5), (8, 8)]
)
def test_equals_loops(op, mask_size, grid):
    inputs = arguments(mask_size=mask_size, grid=grid)
    assert torch.equal(op(**inputs), oracle(**inputs))
    assert torch.equal(op(**inputs, outside=2.5), oracle(**inputs, outside=2.5))


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


@compiled
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_kernel_equals_reference(layout, dtype):
    inputs = arguments(images=3, windows=40, mask_size=9, grid=4, dtype=dtype)
    if layout == "channels_last":
        inputs["score_maps"] = inputs["score_maps"].to(memory_format=torch.channels_last)
    elif layout == "strided":
        maps = inputs["score_maps"].transpose(1, 3).repeat_interleave(2, dim=2)[:, :, ::2].transpose(3, 1)
        inputs["score_maps"], inputs["windows"] = maps, inputs["windows"].T.contiguous().T
        assert not maps.is_contiguous()
    grad = torch.randn(9, 9, 40).to(dtype).permute(2, 1, 0)
    out, maps_grad = gradients(ops.assemble_instances, inputs, grad)
    wide = {**inputs, "score_maps": inputs["score_maps"].double()}
    expected, wide_grad = gradients(reference.assemble_instances, wide, grad.double())
    assert torch.equal(out, expected.to(dtype))
    # half types are summed in float32 and rounded once
    torch.testing.assert_close(maps_grad, wide_grad.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_returns_the_type_of_its_input(op, dtype):
    inputs = arguments(dtype=dtype)
    plain = gradients(op, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = gradients(op, inputs)
    assert all(torch.equal(c, p) and c.dtype == dtype for c, p in zip(cast, plain))


@both
@pytest.mark.parametrize("far", [15, 2**31, -(2**31) - 5, 2**62, -(2**63), 2**63 - 1])
def test_windows_far_outside(op, far):
    inputs = arguments()
    windows = torch.tensor([[0, far, 2], [1, 2, far], [1, far, far]])
    out, maps_grad = gradients(op, {**inputs, "windows": windows})
    assert torch.equal(out, torch.full((3, 7, 7), -10.0))
    assert not maps_grad.any()


@both
@pytest.mark.parametrize(("images", "windows"), [(2, 0), (0, 0)])
def test_empty(op, images, windows):
    inputs = arguments()
    inputs["score_maps"], inputs["windows"] = inputs["score_maps"][:images], inputs["windows"][:windows]
    out, maps_grad = gradients(op, inputs)
    assert out.shape == (0, 7, 7)
    assert torch.equal(maps_grad, torch.zeros(images, 9, 11, 14))


@both
@pytest.mark.parametrize(
    ("argument", "value", "error", "message"),
    [
        ("score_maps", torch.zeros(9, 11, 14), ValueError, "score_maps should be"),
        ("score_maps", torch.zeros(2, 8, 11, 14), ValueError, "score_maps should be .*k = grid = 3"),
        ("score_maps", torch.zeros(2, 9, 0, 14), ValueError, "score_maps should be"),
        ("windows", torch.zeros(5, 4, dtype=torch.int64), ValueError, "windows should be"),
        ("windows", torch.zeros(5, 3, dtype=torch.int32), ValueError, "windows should be"),
        ("windows", torch.tensor([[0, 1, 1], [2, 1, 1]]), IndexError, "the image of windows.* 2, it should be"),
        ("windows", torch.tensor([[0, 1, 1], [-1, 1, 1]]), IndexError, "the image of windows.* -1, it should be"),
        ("mask_size", 0, ValueError, "mask_size should be"),
        ("grid", 2, ValueError, "score_maps should be"),
    ],
)
def test_bad_arguments_are_named(op, argument, value, error, message):
    with pytest.raises(error, match=f"{NAME}: {message}"):
        op(**{**arguments(), argument: value})


def test_integer_maps_are_refused():
    with pytest.raises((NotImplementedError, ValueError), match=NAME):
        ops.assemble_instances(**{**arguments(), "score_maps": torch.zeros(2, 9, 11, 14, dtype=torch.int64)})


def test_devices_have_to_agree():
    with pytest.raises(ValueError, match=rf"{NAME}: windows is on meta, it should be on .* cpu"):
        reference.assemble_instances(**{**arguments(), "windows": torch.zeros(5, 3, dtype=torch.int64, device="meta")})


@compiled
@pytest.mark.parametrize(("mask_size", "grid"), [(5, 3), (4, 2), (3, 5)])
def test_gradcheck(mask_size, grid):
    inputs = arguments(images=1, windows=4, mask_size=mask_size, grid=grid, dtype=torch.float64)
    maps = inputs.pop("score_maps")[:, :, :6, :7].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ops.assemble_instances(x, **inputs), maps)


@compiled
def test_second_derivatives_are_refused():
    inputs = arguments()
    maps = inputs["score_maps"].requires_grad_()
    grad = torch.ones(9, 7, 7, requires_grad=True)
    (first,) = torch.autograd.grad(ops.assemble_instances(**inputs), maps, grad, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once only"):
        torch.autograd.grad(first.square().sum(), grad)


@compiled
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype):
    inputs = arguments(dtype=dtype)
    maps, windows = inputs["score_maps"].requires_grad_(), inputs["windows"]
    torch.library.opcheck(torch.ops.instseg_d2.assemble_instances.default, (maps, windows, 7, 3, -10.0))
    grad = torch.randn(9, 7, 7).to(dtype)
    torch.library.opcheck(torch.ops.instseg_d2._assemble_instances_backward.default, (grad, windows, 2, 11, 14, 3))


@compiled
def test_compiles_into_one_graph():
    inputs = arguments()
    whole = torch.compile(ops.assemble_instances, backend="aot_eager", fullgraph=True, dynamic=True)
    assert_same(gradients(whole, inputs), gradients(ops.assemble_instances, inputs), 0.0)


@compiled
def test_results_do_not_depend_on_the_threads():
    inputs = arguments(windows=3000, mask_size=15, grid=5)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(gradients(ops.assemble_instances, inputs))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert_same(result, results[0], 0.0)


PEAK = """
import resource, torch
from instseg_d2 import ops
torch.set_num_threads(2)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
def run(count):
    maps = torch.zeros(1, 25, 75, 100, requires_grad=True)
    windows = torch.zeros(count, 3, dtype=torch.int64)
    grad = torch.zeros(count, 21, 21) + 1
    before = peak()
    out = ops.assemble_instances(maps, windows, 21, 5)
    after = peak()
    out.backward(grad)
    return after - before, peak() - after
run(50)
print(*run(60000))
"""


@compiled
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory as Linux reports it")
def test_nothing_but_the_output_is_allocated():
    done = subprocess.run([sys.executable, "-c", PEAK], stdout=subprocess.PIPE, text=True, check=True, timeout=120)
    forward, backward = map(int, done.stdout.split())
    assert forward < 1.1 * 60000 * 21 * 21 * 4
    assert backward < 2 * 25 * 75 * 100 * 4 + 2**21  # the gradient itself; the rest is noise of the allocator


@pytest.mark.parametrize("requires_grad", [False, True])
def test_without_the_extension(monkeypatch, requires_grad):
    inputs = arguments()
    inputs["score_maps"].requires_grad_(requires_grad)
    expected = ops.assemble_instances(**inputs)
    calls = []
    monkeypatch.setattr("instseg_d2.ops.extension._BUILT_FOR", None)
    plain = reference.assemble_instances
    monkeypatch.setattr(reference, NAME, lambda *a, **k: calls.append(1) or plain(*a, **k))
    assert_same([ops.assemble_instances(**inputs)], [expected])
    assert calls == [1]


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or ops.has_extension() != "cuda", reason="needs a GPU and the extension built for it"
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("mask_size", "grid"), [(21, 5), (15, 7), (2, 5)])
def test_cuda_equals_cpu(dtype, mask_size, grid):
    inputs = arguments(images=3, windows=700, mask_size=mask_size, grid=grid, dtype=dtype)
    inputs["score_maps"] = inputs["score_maps"].to(memory_format=torch.channels_last)
    on_gpu = {name: value.cuda() if torch.is_tensor(value) else value for name, value in inputs.items()}
    first, second = (gradients(ops.assemble_instances, on_gpu) for _ in range(2))
    assert_same(first, second, 0.0)
    out, maps_grad = gradients(ops.assemble_instances, inputs)
    assert torch.equal(first[0].cpu(), out)
    torch.testing.assert_close(first[1].cpu(), maps_grad, rtol=torch.finfo(dtype).eps, atol=1e-5)
