"""
Random arguments, good and bad, for the operators: the compiled ones give the results and errors of the references.

INSTSEG_FUZZ sets how many arguments are drawn for each operator (default 150).
"""

import os
import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instseg_d2 import ops
from instseg_d2.ops import reference

fuzz = settings(
    max_examples=int(os.environ.get("INSTSEG_FUZZ", 150)),
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
needs_extension = pytest.mark.skipif(not ops.has_extension(), reason="the operators are not compiled")
FLOATS = [torch.float32, torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 6e-2}
NAN, INF = float("nan"), float("inf")
COORDINATES = [
    0.0,
    -1.0,
    3.5,
    8.0,
    31.0,
    32.0,
    40.25,
    -20.0,
    1e4,
    -1e9,
    3e38,
    NAN,
    INF,
    -INF,
]
INDEX = ["range", "type", "shape"]
SHARED = ["box range", "box type", "box shape"]
FAR = [0, 1, -1, 5, -7, 100, 2**31, -(2**31) - 5, 2**63 - 1, -(2**63)]


@st.composite
def tensors(draw, shape, dtype):
    """Random values of about 1: contiguous, transposed, a strided part of a larger tensor, or one row repeated."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    layout = draw(st.sampled_from(["contiguous", "transposed", "strided", "expanded"]))
    if layout == "transposed":
        return torch.randn(shape[::-1], generator=generator).to(dtype).permute(*range(len(shape))[::-1])
    if layout == "expanded":
        return torch.randn((*shape[:-1], 1), generator=generator).to(dtype).expand(shape)
    if layout == "strided":
        return torch.randn([2 * n for n in shape], generator=generator).to(dtype)[
            tuple(slice(None, None, 2) for _ in shape)
        ]
    return torch.randn(shape, generator=generator).to(dtype)


def planted(draw, tensor, values):
    """The tensor with one of the values in up to three places, in every second case."""
    changed = tensor.clone()
    for _ in range(draw(st.integers(0, 3)) if tensor.numel() and draw(st.booleans()) else 0):
        changed[tuple(draw(st.integers(0, n - 1)) for n in tensor.shape)] = draw(st.sampled_from(values))
    return changed


def sizes(low, high):
    return st.integers(low, high)


def indices(count, limit, draw, fault=None):
    """int64 (count,) below the limit, or with one fault: out of range, of another type or shape."""
    choices = [n for n in FAR if not 0 <= n < limit] if fault == "range" else range(limit)
    index = torch.tensor(draw(st.lists(st.sampled_from(choices), min_size=count, max_size=count)) if count else [])
    index = index.to(torch.int32 if fault == "type" else torch.int64)
    return torch.zeros(count + 1, dtype=torch.int64) if fault == "shape" else index


def one_fault(draw, names):
    """One of the names, or None: two faults at once may be reported in another order."""
    return draw(st.sampled_from([*names, *[None] * (2 * len(names))]))


def boxes_of(count, dtype, draw):
    """(count, 4): inside, across and beyond the border, turned round, empty, not finite."""
    numbers = st.one_of(st.sampled_from(COORDINATES), st.integers(-400, 800).map(lambda n: n / 16))
    rows = draw(st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=count, max_size=count))
    return torch.tensor(rows, dtype=dtype).view(count, 4)


def outcome(op, arguments, leaves):
    """(result, gradients) or (type of the error, "operator: argument")."""
    arguments = dict(arguments)
    for name in leaves:
        if arguments[name].is_floating_point():
            arguments[name] = arguments[name].detach().requires_grad_()
    try:
        result = op(**arguments)
    except Exception as error:
        return type(error), re.match(r"\w+: (\w+)", str(error))[0]  # values are written in two ways
    inputs = [arguments[name] for name in leaves if arguments[name].requires_grad]
    weights = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view_as(result)
    gradients = torch.autograd.grad((result * weights).sum(), inputs, allow_unused=True)
    return result.detach(), gradients


def check_alike(op, plain, arguments, leaves):
    found, expected = outcome(op, arguments, leaves), outcome(plain, arguments, leaves)
    if isinstance(expected[0], type):
        assert found == expected
        assert expected[0] in (ValueError, IndexError)
        return
    assert isinstance(found[0], torch.Tensor), found
    for a, b in zip((found[0], *found[1]), (expected[0], *expected[1])):
        assert a is not None
        tolerance = TOLERANCE[b.dtype]
        finite = b.detach().float().nan_to_num(0, 0, 0)
        scale = 1 + float(finite.abs().amax()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True)


@needs_extension
@fuzz
@given(st.data())
def test_blend_masks(data):
    draw = data.draw
    fault = one_fault(draw, ["bases", "attention", "square", "resolution", "interpolation", *INDEX, *SHARED])
    count, bases, height, width = (draw(sizes(*x)) for x in ((0, 4), (1, 5), (1, 9), (1, 12)))
    images, size = draw(sizes(int(count > 0), 3)), draw(sizes(1, 6))
    dtype = draw(st.sampled_from(FLOATS))
    sharing = fault in SHARED or draw(st.booleans())
    masks = (draw(sizes(0, 6)) if count else 0) if sharing else count
    arguments = {
        "bases": draw(tensors((images, bases + (fault == "bases"), height, width), dtype)),
        "boxes": boxes_of(count, draw(st.sampled_from([torch.float32, torch.float64])), draw),
        "batch_index": indices(count, images, draw, fault),
        "attention": draw(tensors((masks + (fault == "attention"), bases, size, size + (fault == "square")), dtype)),
        "box_index": indices(masks, count, draw, (fault or "").removeprefix("box ")) if sharing else None,
        "resolution": -1 if fault == "resolution" else draw(st.sampled_from([1, 2, 3, 4, 5, 7, 8])),
        "spatial_scale": draw(st.sampled_from([0.25, 0.5, 0.125])),
        "top_interp": "cubic" if fault == "interpolation" else draw(st.sampled_from(["bilinear", "nearest"])),
    }
    if sharing and fault in INDEX:
        arguments["box_index"] = indices(masks, count, draw)
    # Where a weight is 0 a NaN is not read: only if positions are exact does every way of rounding agree about it.
    if arguments["resolution"] in (1, 2, 4, 8) and not (arguments["boxes"].nan_to_num(0, 0, 0).abs() > 1e4).any():
        name, values = draw(st.sampled_from([("bases", [NAN, INF, -INF]), ("attention", [NAN, INF, -INF, -INF])]))
        arguments[name] = planted(draw, arguments[name], values)
    check_alike(ops.blend_masks, reference.blend_masks, arguments, ("bases", "attention"))


@needs_extension
@fuzz
@given(st.data())
def test_mask_prob(data):
    draw = data.draw
    fault = one_fault(draw, ["window", "window type", "proposals", "margins", *INDEX])
    images, dims, height, width = (draw(sizes(*x)) for x in ((1, 3), (1, 9), (1, 9), (1, 12)))
    count, dtype = draw(sizes(0, 4)), draw(st.sampled_from(FLOATS))
    windows = None
    if str(fault).startswith("window") or draw(st.booleans()):
        low, high = (-1, 3) if fault == "window" else (0, 0)
        corners = []
        for _ in range(count):
            x = sorted(draw(st.tuples(sizes(low, width + high), sizes(low, width + high))))
            y = sorted(draw(st.tuples(sizes(low, height + high), sizes(low, height + high))))
            corners.append([x[0], y[0], x[1], y[1]])
        windows = torch.tensor(corners, dtype=torch.int32 if fault == "window type" else torch.int64).view(count, 4)
    margins = dims + 1 if fault == "margins" else draw(st.sampled_from([1, dims]))
    arguments = {
        "pixel_embeddings": draw(tensors((images, dims, height, width), dtype)),
        "proposal_embeddings": draw(tensors((count, dims + (fault == "proposals")), dtype)),
        "margins": draw(tensors((count, margins), dtype)),
        "windows": windows,
        "image_index": indices(count, images, draw, fault),
    }
    leaves = ("pixel_embeddings", "proposal_embeddings", "margins")
    for name in leaves:
        arguments[name] = planted(draw, arguments[name], [NAN])
    check_alike(ops.mask_prob, reference.mask_prob, arguments, leaves)


@needs_extension
@fuzz
@given(st.data())
def test_assemble_instances(data):
    draw = data.draw
    fault = one_fault(draw, ["maps", "mask size", "columns", *INDEX])
    count, grid, height, width = (draw(sizes(*x)) for x in ((0, 5), (1, 5), (1, 9), (1, 12)))
    images, dtype = draw(sizes(int(count > 0), 3)), draw(st.sampled_from(FLOATS))
    places = st.one_of(st.integers(-15, 15), st.sampled_from(FAR))
    corners = draw(st.lists(st.tuples(places, places), min_size=count, max_size=count))
    windows = torch.tensor(corners, dtype=torch.int64).view(count, 2)
    image = indices(count, images, draw, fault if fault == "range" else None)
    if fault != "columns":
        windows = torch.cat([image[:, None], windows], dim=1)
    arguments = {
        "score_maps": draw(tensors((images, grid * grid + (fault == "maps"), height, width), dtype)),
        "windows": windows.float() if fault == "type" else windows,
        "mask_size": 0 if fault == "mask size" else draw(st.sampled_from([1, 2, 5, 8, 15, 21])),
        "grid": grid,
    }
    check_alike(ops.assemble_instances, reference.assemble_instances, arguments, ("score_maps",))
