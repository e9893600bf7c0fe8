"""
assemble_instances in loops, random arguments for it, and its cases.

N images, M windows of m x m cells, k x k parts.
"""

import torch

from tests.ops.harness import INT, Memory, Operator, crossed, named


def assemble_oracle(score_maps, windows, mask_size, grid, outside=-10.0):
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


def assemble_arguments(images=2, windows=9, mask_size=7, grid=3, size=(11, 14), dtype=torch.float32, seed=0):
    """Random arguments; the windows reach over every border of the maps, two lie wholly outside."""
    generator = torch.Generator().manual_seed(seed)
    height, width = size
    corners = torch.randint(-mask_size + 1, width - 1, (windows, 2), generator=generator)
    corners[:2] = torch.tensor([[-mask_size, 3], [2, width]])[:windows]
    image = torch.randint(images, (windows, 1), generator=generator)
    maps = torch.randn(images, grid * grid, height, width, generator=generator).to(dtype)
    return {
        "score_maps": maps,
        "windows": torch.cat([image, corners], dim=1),
        "mask_size": mask_size,
        "grid": grid,
    }


def _fewer_windows(images):
    return lambda x: {**x, "score_maps": x["score_maps"][:images], "windows": x["windows"][:0]}


SIZES = named(("mask_size", "grid"), (21, 3), (21, 5), (21, 7), (15, 3), (15, 5), (15, 7), (1, 1), (2, 5), (8, 8))
ASSEMBLE_INSTANCES = Operator(
    name="assemble_instances",
    oracle=assemble_oracle,
    arguments=assemble_arguments,
    leaves=("score_maps",),
    options=("outside",),
    layouts={"channels_last": ["score_maps"], "strided": ["score_maps", "windows"]},
    exact=True,
    tolerance=1e-6,
    oracle_cases=[*SIZES, *({**case, "outside": 2.5} for case in SIZES)],
    kernel_cases=crossed(
        [{"images": 3, "windows": 40, "mask_size": 9, "grid": 4}],
        named(("dtype",), (torch.float32,), (torch.float64,), (torch.float16,), (torch.bfloat16,)),
    ),
    half_cases=[{"images": 3, "windows": 40, "mask_size": 9, "grid": 4}],
    gradcheck_cases=[
        {"images": 1, "windows": 4, "size": (6, 7), **case}
        for case in named(("mask_size", "grid"), (5, 3), (4, 2), (3, 5))
    ],
    opcheck_cases=[{}],
    compile_cases=[{}],
    thread_cases=[{"windows": 3000, "mask_size": 15, "grid": 5}],
    cuda_cases=[
        {"images": 3, "windows": 700, **case} for case in named(("mask_size", "grid"), (21, 5), (15, 7), (2, 5))
    ],
    empty={"M=0": _fewer_windows(2), "N=0": _fewer_windows(0)},
    empty_shape=(0, 7, 7),
    bad=[
        ("score_maps", torch.zeros(9, 11, 14), ValueError, "score_maps should be"),
        ("score_maps", torch.zeros(2, 8, 11, 14), ValueError, "score_maps should be .*k = grid = 3"),
        ("score_maps", torch.zeros(2, 9, 0, 14), ValueError, "score_maps should be"),
        ("windows", torch.zeros(5, 4, **INT), ValueError, "windows should be"),
        ("windows", torch.zeros(5, 3, dtype=torch.int32), ValueError, "windows should be"),
        ("windows", torch.tensor([[0, 1, 1], [2, 1, 1]]), IndexError, "the image of windows.* 2, it should be"),
        ("windows", torch.tensor([[0, 1, 1], [-1, 1, 1]]), IndexError, "the image of windows.* -1, it should be"),
        ("score_maps", torch.zeros(1).expand(2, 9, 2**14, 2**13), ValueError, "score_maps of one image should be"),
        ("mask_size", 0, ValueError, "mask_size should be"),
        ("mask_size", 4097, ValueError, "mask_size should be"),
        ("grid", 0, ValueError, "grid should be from 1 to 1024"),
        ("grid", 1025, ValueError, "grid should be from 1 to 1024"),
        ("grid", 2, ValueError, "score_maps should be"),
    ],
    schema=lambda x: (*x.values(), -10.0),
    backward_schema=lambda grad, x: (grad, x["windows"], 2, 11, 14, 3),
    memory=[
        Memory(
            prepare="""
            count, = size
            maps = torch.zeros(1, 25, 75, 100, requires_grad=True)
            windows = torch.zeros(count, 3, dtype=torch.int64)
            grad = torch.zeros(count, 21, 21) + 1
            return lambda: ops.assemble_instances(maps, windows, 21, 5), grad
            """,
            small=(50,),
            large=(60000,),
            forward=1.1 * 60000 * 21 * 21 * 4,
            backward=2 * 25 * 75 * 100 * 4 + 2**21,  # the gradient itself; the rest is noise of the allocator
        )
    ],
)
