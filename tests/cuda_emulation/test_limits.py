"""
Arguments that only CUDA kernels have trouble with: more than 65,535 of anything (the rows of a grid), more than 256
(the threads of a block) where the last one decides, and offsets that need more than 32 bits.
"""

import pytest
import torch

from instseg_d2 import ops
from instseg_d2.ops import reference
from tests.ops.assemble_instances import ASSEMBLE_INSTANCES, assemble_arguments
from tests.ops.blend_masks import BLEND_MASKS, blend_arguments
from tests.ops.harness import assert_same
from tests.ops.mask_prob import MASK_PROB, prob_arguments

MANY = 2 * 65535
ENDS = [0, 1, -2, -1]  # what the blocks compute that `ends` runs
COUNTS = [255, 256, 257, 512, 513]
FAR = 2**31 + 3
BLENDS = (ops.blend_masks, reference.blend_masks)


def check(operator, inputs, tolerance=2e-5, **options):
    found = operator.gradients(operator.op, inputs, **options)
    assert_same(found, operator.gradients(operator.plain, inputs, **options), tolerance)
    return found


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("whole", [False, True])
def test_the_last_object_of_mask_prob(count, whole):
    inputs = prob_arguments(images=2, objects=count, dims=3, whole=whole, size=(9, 40))
    inputs["image_index"] = torch.zeros(count, dtype=torch.int64)
    inputs["image_index"][-1] = 1
    if not whole:
        inputs["windows"][:] = 0
        inputs["windows"][-1] = torch.tensor([33, 7, 40, 9])
    _, pixels, *_ = check(MASK_PROB, inputs, tolerance=1e-4)
    assert pixels[1, :, 7:, 33:].all()


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("grid", [1, 3])
def test_the_last_window_of_assemble_instances(count, grid):
    inputs = assemble_arguments(images=2, windows=count, mask_size=7, grid=grid)
    inputs["windows"][:, 1] = 100  # outside
    inputs["windows"][-1] = torch.tensor([1, 2, 5])
    out, maps = check(ASSEMBLE_INSTANCES, inputs)
    assert maps[1].count_nonzero() == out[-1].numel()


@pytest.mark.parametrize("count", COUNTS)
def test_the_last_mask_of_blend_masks(count):
    inputs = blend_arguments(images=2, boxes=2, masks=count, bases=2)
    inputs["batch_index"] = torch.tensor([0, 1])
    inputs["box_index"] = torch.zeros(count, dtype=torch.int64)
    inputs["box_index"][-1] = 1
    _, bases, _ = check(BLEND_MASKS, inputs, resolution=4)
    assert bases[1].any()


def far_apart(tensor, axis):
    """The same values in float16, 2**31 elements apart along the axis; what lies between takes no memory."""
    storage = torch.empty(FAR + 2 * tensor.numel(), dtype=torch.float16)
    strides = list(torch.empty(tensor.shape).stride())
    strides[axis] = FAR
    result = storage.as_strided(tensor.shape, strides)
    result.copy_(tensor)
    return result


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("name", ["bases", "attention"])
def test_far_strides_of_blend_masks(name, axis):
    inputs = blend_arguments(images=2, boxes=2, bases=2, size=2, dtype=torch.float16)
    inputs["bases"] = inputs["bases"][:, :, :2, :2].contiguous()
    inputs["boxes"] = torch.tensor([[0.0, 0.0, 8.0, 8.0], [-1.0, 1.0, 9.0, 6.0]])
    inputs["batch_index"] = torch.tensor([0, 1])
    near = BLEND_MASKS.gradients(ops.blend_masks, inputs, resolution=4)
    far = {**inputs, name: far_apart(inputs[name], axis)}
    assert_same([ops.blend_masks(**far, resolution=4)], near[:1], 0.0)


@pytest.mark.parametrize("axis", range(4))
def test_far_strides_of_assemble_instances(axis):
    inputs = assemble_arguments(images=2, windows=20, mask_size=3, grid=2, size=(2, 2), dtype=torch.float16)
    maps = inputs["score_maps"]
    if axis == 1:
        maps = inputs["score_maps"] = maps.view(2, 2, 2, 2, 2)[:, 0].repeat(1, 2, 1, 1)
        storage = torch.empty(FAR + 100, dtype=torch.float16)
        far = storage.as_strided(maps.shape, (16, FAR // 3, 2, 1))
        far.copy_(maps)
    else:
        far = far_apart(maps, axis)
    assert torch.equal(ops.assemble_instances(**{**inputs, "score_maps": far}), ops.assemble_instances(**inputs))


@pytest.mark.parametrize("axis", range(4))
def test_far_strides_of_mask_prob(axis):
    inputs = prob_arguments(images=2, dims=2, size=(2, 2), dtype=torch.float16)
    far = {**inputs, "pixel_embeddings": far_apart(inputs["pixel_embeddings"], axis)}
    assert torch.equal(ops.mask_prob(**far), ops.mask_prob(**inputs))


@pytest.fixture
def ends(monkeypatch):
    monkeypatch.setenv("INSTSEG_EMULATION_BLOCKS", "ends")


def test_many_planes_of_assemble_instances(ends):
    images = 65535
    inputs = assemble_arguments(images=images, windows=40, mask_size=3, grid=2, size=(3, 4))
    inputs["windows"][::2, 0], inputs["windows"][1::2, 0] = 0, images - 1
    found, expected = (
        ASSEMBLE_INSTANCES.gradients(op, inputs)[1] for op in (ops.assemble_instances, reference.assemble_instances)
    )
    assert expected.flatten(0, 1)[ENDS].flatten(1).any(dim=1).all()
    assert_same([found.flatten(0, 1)[ENDS]], [expected.flatten(0, 1)[ENDS]])


def test_many_masks_of_blend_masks(ends):
    inputs = blend_arguments(boxes=3, masks=MANY, bases=2, size=2)
    found, expected = (BLEND_MASKS.gradients(op, inputs, resolution=2) for op in BLENDS)
    assert_same([found[0][ENDS], found[2][ENDS]], [expected[0][ENDS], expected[2][ENDS]])


def test_many_images_of_blend_masks(ends):
    inputs = blend_arguments(images=MANY, boxes=4, bases=2, size=2)
    inputs["batch_index"] = torch.tensor([MANY - 1, 1, 0, MANY - 2])
    found, expected = (BLEND_MASKS.gradients(op, inputs, resolution=4)[1][ENDS] for op in BLENDS)
    assert_same([found], [expected])


def test_many_objects_of_mask_prob(ends):
    inputs = prob_arguments(objects=MANY, dims=2, whole=True, size=(2, 3))
    found, expected = (op(**inputs).view(MANY, 6)[ENDS] for op in (ops.mask_prob, reference.mask_prob))
    assert_same([found], [expected])


def test_many_images_of_mask_prob(ends):
    inputs = prob_arguments(images=MANY, objects=4, dims=1, whole=True, size=(2, 3))
    inputs["image_index"] = torch.tensor([MANY - 1, 1, 0, MANY - 2])
    found, expected = (MASK_PROB.gradients(op, inputs)[1] for op in (ops.mask_prob, reference.mask_prob))
    assert_same([found[ENDS]], [expected[ENDS]])


HALF = {"dtype": torch.float16}


def test_results_beyond_32_bits_of_blend_masks(ends):
    masks, resolution = 10 * 65535, 58
    assert masks * resolution**2 > FAR
    inputs = blend_arguments(images=1, boxes=1, bases=2, size=2, **HALF)
    inputs["attention"] = inputs["attention"].expand(masks, 2, 2, 2)
    inputs["box_index"] = torch.zeros(masks, dtype=torch.int64)
    out = ops.blend_masks(**inputs, resolution=resolution)
    few = {**inputs, "attention": inputs["attention"][:1].clone(), "box_index": inputs["box_index"][:1]}
    expected = reference.blend_masks(**few, resolution=resolution)[0]
    for at in (0, -1):
        rows = [0, 1, -1]  # of the blocks that ran
        torch.testing.assert_close(out[at, rows], expected[rows], rtol=1e-3, atol=1e-3)


def test_results_beyond_32_bits_of_assemble_instances(ends):
    windows, size = 40 * 65535, 32
    assert windows * size**2 > FAR
    maps = torch.randn(1, 4, 40, 40).half()
    places = torch.zeros(windows, 3, dtype=torch.int64)
    out = ops.assemble_instances(maps, places, size, 2)
    expected = reference.assemble_instances(maps, places[:1], size, 2)[0]
    for at in (0, -1):
        assert torch.equal(out[at, [0, -1]], expected[[0, -1]])


def test_results_beyond_32_bits_of_mask_prob(ends):
    objects, size = 2100, 1024
    assert objects * size**2 > FAR
    inputs = prob_arguments(images=1, objects=objects, dims=1, whole=True, size=(size, size), **HALF)
    out = ops.mask_prob(**inputs).view(objects, size, size)
    for at, columns in ((0, slice(256)), (-1, slice(-256, None))):  # of the blocks that ran
        few = {name: inputs[name][[at]] for name in ("proposal_embeddings", "margins", "image_index")}
        few["pixel_embeddings"] = inputs["pixel_embeddings"]
        expected = reference.mask_prob(windows=None, **few).view(size, size)
        assert_same([out[at, at, columns]], [expected[at, columns]], 1e-3)
