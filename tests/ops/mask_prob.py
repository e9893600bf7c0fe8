"""
mask_prob in loops, random arguments for it, and its cases.

N images, M objects, D dimensions, maps of H x W cells.
"""

import itertools

import torch

from instseg_d2.ops import window_offsets
from tests.ops.harness import INT, Memory, Operator, crossed, named, product


def prob_oracle(pixel_embeddings, proposal_embeddings, margins, windows, image_index):
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


def prob_arguments(images=2, objects=6, dims=3, per_dim=True, whole=False, size=(9, 43), dtype=torch.float32, seed=0):
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


def _no_objects(images, whole):
    def change(inputs):
        inputs = {name: value if name == "pixel_embeddings" else value[:0] for name, value in inputs.items()}
        inputs["pixel_embeddings"] = inputs["pixel_embeddings"][:images]
        return {**inputs, "windows": None} if whole else inputs

    return change


def _offsets(windows):
    return torch.zeros(0, **INT) if windows is None else window_offsets(windows)


WHOLE = product(whole=[False, True])
MASK_PROB = Operator(
    name="mask_prob",
    oracle=prob_oracle,
    arguments=prob_arguments,
    leaves=("pixel_embeddings", "proposal_embeddings", "margins"),
    layouts={
        "channels_last": ["pixel_embeddings"],
        "strided": ["pixel_embeddings", "proposal_embeddings", "margins", "windows", "image_index"],
    },
    mixed="pixel_embeddings",
    oracle_dtype=torch.float64,
    oracle_tolerance=1e-12,
    oracle_cases=product(dims=[1, 2, 16], per_dim=[False, True], whole=[False, True]),
    kernel_cases=crossed(
        [{"images": 3, "objects": 20, "size": (24, 75), **x} for x in WHOLE],
        named(("dims", "per_dim"), (1, True), (8, False), (16, True), (32, False)),
    ),
    half_cases=[{"objects": 12, "dims": 16, **x} for x in WHOLE],
    gradcheck_cases=[
        {"objects": 4, "dims": 2, "size": (3, 5), **x} for x in product(per_dim=[False, True], whole=[False, True])
    ],
    opcheck_cases=WHOLE,
    compile_cases=WHOLE,
    thread_cases=[{"images": 2, "objects": 40, "dims": 7, "size": (60, 70), **x} for x in WHOLE],
    cuda_cases=crossed(
        [{"images": 3, "size": (37, 75), **x} for x in WHOLE],
        named(("dims", "per_dim", "objects"), (1, True, 7), (8, False, 300), (16, True, 20), (19, True, 3)),
    ),
    double_tolerance=1e-10,
    empty={
        f"N={images}, {'whole maps' if whole else 'windows'}": _no_objects(images, whole)
        for images in (0, 2)
        for whole in (False, True)
    },
    empty_shape=(0,),
    bad=[
        ("pixel_embeddings", torch.zeros(3, 9, 43), ValueError, "pixel_embeddings should be"),
        ("pixel_embeddings", torch.zeros(2, 0, 9, 43), ValueError, "pixel_embeddings should be"),
        ("pixel_embeddings", torch.zeros(2, 3, 9, 0), ValueError, "pixel_embeddings should be"),
        (
            "pixel_embeddings",
            torch.zeros(1).expand(2, 65537, 9, 43),
            ValueError,
            "pixel_embeddings .* at most D = 65536",
        ),
        ("pixel_embeddings", torch.zeros(1).expand(2, 3, 2**16, 2**15), ValueError, r"pixel_embeddings .* 2\*\*31"),
        ("proposal_embeddings", torch.zeros(1).expand(2**30, 3), ValueError, r"proposal_embeddings .* below 2\*\*31"),
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
    schema=lambda x: tuple(x.values()),
    backward_schema=lambda grad, x: (grad, *x.values(), _offsets(x["windows"]), len(grad)),
    memory=[
        Memory(
            prepare="""
            objects, height, width, dims = size
            shapes = (1, dims, height, width), (objects, dims), (objects, 1)
            tensors = [torch.zeros(shape, requires_grad=True) for shape in shapes]
            image, grad = torch.zeros(objects, dtype=torch.int64), torch.zeros(objects * height * width) + 1
            return lambda: ops.mask_prob(*tensors, None, image), grad
            """,
            small=(9, 20, 20, 16),
            large=(60, 200, 336, 16),
            forward=1.2 * 60 * 200 * 336 * 4,  # the output and next to nothing: the broadcast formula takes 16 of them
            backward=16 * 200 * 336 * 4 + 0.2 * 60 * 200 * 336 * 4,
        )
    ],
)
