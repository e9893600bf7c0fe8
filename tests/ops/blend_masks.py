"""
blend_masks in loops, random arguments for it, and its cases.

N images, M boxes, P masks, K bases, attention of A x A, masks of R x R.
"""

import itertools
import math

import torch

from tests.ops.harness import INT, Memory, Operator, crossed, named, product


def tent_read(plane, y, x):
    """
    Bilinear value at (y, x) of a plane that continues its border, by the tent function of every cell; cells where it
    is 0 are not read.
    """
    height, width = len(plane), len(plane[0])
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    tents = [(i, j, max(0.0, 1 - abs(y - i)) * max(0.0, 1 - abs(x - j))) for i in range(height) for j in range(width)]
    return sum(plane[i][j] * tent for i, j, tent in tents if tent > 0)


def blend_oracle(
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
            inside = -1 <= y <= height and -1 <= x <= width
            if top_interp == "nearest":
                logits = [plane[i * size // resolution][j * size // resolution] for plane in maps]
            else:
                v, u = ((c + 0.5) * size / resolution - 0.5 for c in (i, j))
                logits = [tent_read(plane, v, u) for plane in maps]
            top = max(logits)
            weights = [1.0] if len(logits) == 1 else [math.exp(logit - top) for logit in logits]
            values = [tent_read(plane, y, x) if inside else 0.0 for plane in planes]
            mask[i][j] = sum(w * v for w, v in zip(weights, values)) / sum(weights)
        masks.append(mask)
    return torch.tensor(masks, dtype=torch.float64).reshape(-1, resolution, resolution)


def blend_arguments(
    images=2, boxes=5, masks=None, bases=3, size=3, shrunk=1.0, no_number=False, dtype=torch.float32, seed=0
):
    """
    Random arguments; the boxes reach over every border of the 52 x 36 pixels that the bases cover.

    Args:
        masks: number of masks that share the boxes; None: each box has its own.
        shrunk: factor of the boxes; no_number: a corner of the first one is NaN.
    """
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(boxes, 2, generator=generator) * 50 - 15
    inputs = {
        "bases": torch.randn(images, bases, 9, 13, generator=generator).to(dtype),
        "boxes": torch.cat([corners, corners + 3 + torch.rand(boxes, 2, generator=generator) * 40], dim=1) * shrunk,
        "batch_index": torch.randint(images, (boxes,), generator=generator),
        "attention": (2 * torch.randn(masks or boxes, bases, size, size, generator=generator)).to(dtype),
    }
    if masks is not None:
        inputs["box_index"] = torch.randint(boxes, (masks,), generator=generator)
    if no_number:
        inputs["boxes"][0, 0] = math.nan
    return inputs


def _fewer_masks(images, boxes, shared):
    def change(inputs):
        inputs = {**inputs, "bases": inputs["bases"][:images], "attention": inputs["attention"][:0]}
        inputs.update({name: inputs[name][:boxes] for name in ("boxes", "batch_index")})
        return {**inputs, "box_index": torch.zeros(0, **INT)} if shared else inputs

    return change


def _blend_schema(inputs, *rest):
    return (*(inputs.get(name) for name in ("bases", "boxes", "batch_index", "attention", "box_index")), *rest)


INTERPOLATIONS = named(("top_interp",), ("bilinear",), ("nearest",))
_BLEND_MEMORY = """
masks, boxes = size
bases = torch.zeros(1, 4, 200, 272, requires_grad=True)
attention = torch.zeros(masks, 4, 14, 14, requires_grad=True)
box, image = torch.tensor([[9., 9., 700., 500.]] * boxes), torch.zeros(boxes, dtype=torch.int64)
grad, index = torch.zeros(masks, 56, 56) + 1, torch.arange(masks) % boxes
return lambda: ops.blend_masks(bases, box, image, attention, box_index=index), grad
"""
_MASKS = 4000 * 56 * 56 * 4  # bytes
BLEND_MASKS = Operator(
    name="blend_masks",
    oracle=blend_oracle,
    arguments=blend_arguments,
    leaves=("bases", "attention"),
    options=("resolution", "top_interp"),
    layouts={
        "channels_last": ["bases", "attention"],
        "strided": ["bases", "attention", "boxes", "batch_index", "box_index"],
    },
    mixed="attention",
    oracle_dtype=torch.float64,
    oracle_tolerance=1e-6,  # boxes come in float32
    oracle_cases=crossed(
        product(masks=[None, 8], top_interp=["bilinear", "nearest"]),
        named(("bases", "size", "resolution"), (1, 3, 4), (2, 1, 5), (3, 4, 4), (4, 2, 7), (5, 7, 3)),
    ),
    kernel_cases=crossed(
        [{"images": 3, "boxes": 12, "masks": 30, "shrunk": 0.7, **x} for x in INTERPOLATIONS],
        named(("bases", "size", "resolution"), (1, 14, 28), (4, 14, 56), (4, 1, 28), (8, 28, 28), (64, 7, 9)),
    ),
    half_cases=[{"masks": 40, "bases": 4, "size": 14, "resolution": 28}],
    gradcheck_cases=crossed(
        [{"images": 1, "boxes": 3, "resolution": 4, **x} for x in INTERPOLATIONS],
        named(("bases", "size", "masks"), (1, 2, None), (2, 3, 5), (3, 5, None)),
    ),
    opcheck_cases=[{"masks": None}, {"masks": 7}],
    compile_cases=[{"masks": 7}],
    thread_cases=[{"images": 1, "boxes": 9, "masks": 50, "bases": 4, "size": 7, "resolution": 28}],
    cuda_cases=crossed(
        [{"boxes": 7, "no_number": True, "resolution": 28, **x} for x in INTERPOLATIONS],
        named(("bases", "size", "masks"), (1, 14, None), (4, 14, 40), (4, 1, 7), (64, 28, 9), (64, 7, 700)),
    ),
    empty={
        "M=0": _fewer_masks(2, 0, False),
        "N=0": _fewer_masks(0, 0, False),
        "M=P=0": _fewer_masks(2, 0, True),
        "P=0": _fewer_masks(2, 3, True),
    },
    empty_shape=(0, 56, 56),
    bad=[
        ("bases", torch.zeros(3, 9, 13), ValueError, "bases should be"),
        ("bases", torch.zeros(2, 3, 0, 13), ValueError, "bases should be"),
        ("boxes", torch.zeros(5, 5), ValueError, "boxes should be"),
        ("boxes", torch.zeros(5, 4, **INT), ValueError, "boxes should be"),
        ("batch_index", torch.zeros(4, **INT), ValueError, "batch_index should be"),
        ("batch_index", torch.zeros(5), ValueError, "batch_index should be"),
        ("batch_index", torch.tensor([0, 1, 2, 0, 0]), IndexError, "batch_index.* 2, it should be"),
        ("batch_index", torch.tensor([0, 1, -1, 0, 0]), IndexError, "batch_index.* -1, it should be"),
        ("attention", torch.zeros(5, 2, 3, 3), ValueError, "attention should be"),
        ("attention", torch.zeros(5, 3, 3, 4), ValueError, "attention should be"),
        ("attention", torch.zeros(4, 3, 3, 3), ValueError, "without box_index, attention should have"),
        ("box_index", torch.zeros(4, **INT), ValueError, "box_index should be"),
        ("box_index", torch.zeros(5, dtype=torch.int32), ValueError, "box_index should be"),
        ("box_index", torch.tensor([0, 5, 0, 0, 0]), IndexError, "box_index.* 5, it should be"),
        ("box_index", torch.tensor([0, -1, 0, 0, 0]), IndexError, "box_index.* -1, it should be"),
        ("bases", torch.zeros(1).expand(2, 3, 2**15, 2**15), ValueError, "bases of one image should be"),
        ("attention", torch.zeros(1).expand(5, 3, 4097, 4097), ValueError, "attention should be at most"),
        ("resolution", 0, ValueError, "resolution should be"),
        ("resolution", 4097, ValueError, "resolution should be"),
        ("top_interp", "bicubic", ValueError, "top_interp should be"),
    ],
    schema=lambda x: _blend_schema(x, 8, 0.25, False),
    backward_schema=lambda grad, x: (grad, *_blend_schema(x, 0.25, True)),
    memory=[  # the output itself, and next to nothing; each box alone, and shared by 80 masks
        Memory(_BLEND_MEMORY, (50, 50), (4000, boxes), 1.2 * _MASKS, 4000 * 4 * 14 * 14 * 4 + 0.5 * _MASKS)
        for boxes in (50, 4000)
    ],
)
