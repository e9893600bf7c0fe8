"""Batches packed into one block of shared memory."""

import pickle

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from instseg_d2.data.packing import pack, unpack


def through_a_pipe(batch):
    """Send an object as the loader's queue does."""
    packed = pack(batch)
    return unpack(type(packed)(*pickle.loads(pickle.dumps(tuple(packed)))))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.int64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 7, 5), (0, 4)])
def test_tensors(dtype, shape):
    tensor = torch.arange(float(np.prod(shape))).reshape(shape).to(dtype)
    first, second = through_a_pipe([tensor, tensor + tensor])
    assert first.dtype == second.dtype == dtype
    assert torch.equal(first, tensor)
    assert torch.equal(second, tensor + tensor)


def test_views_with_strides():
    image = torch.arange(24).reshape(2, 3, 4)
    (one, two), array = through_a_pipe([(image.transpose(0, 2), image[:, 1:, ::2]), np.arange(9)[::-2]])
    assert torch.equal(one, image.transpose(0, 2))
    assert torch.equal(two, image[:, 1:, ::2])
    assert array.tolist() == [8, 6, 4, 2, 0]


def test_samples():
    instances = Instances((6, 8))
    instances.gt_boxes = Boxes(torch.tensor([[1.0, 2, 3, 4], [0, 0, 8, 6]]))
    instances.gt_classes = torch.tensor([2, 0])
    instances.gt_masks = BitMasks(torch.rand(2, 6, 8) > 0.5)
    outline = np.array([0.0, 0, 4, 0, 4, 4])
    polygons = Instances((6, 8), gt_masks=PolygonMasks([[outline], [outline, outline + 1]]))
    batch = [({"image": torch.ones(3, 6, 8, dtype=torch.uint8), "file_name": "ä.jpg", "instances": instances}, [])]
    batch.append(({"instances": polygons}, [("b.jpg", "is broken")]))
    (first, none), (second, errors) = through_a_pipe(batch)
    assert (first["file_name"], none, errors) == ("ä.jpg", [], [("b.jpg", "is broken")])
    assert torch.equal(first["image"], batch[0][0]["image"])
    found = first["instances"]
    assert found.image_size == (6, 8)
    assert torch.equal(found.gt_boxes.tensor, instances.gt_boxes.tensor)
    assert torch.equal(found.gt_classes, instances.gt_classes)
    assert torch.equal(found.gt_masks.tensor, instances.gt_masks.tensor)
    parts = second["instances"].gt_masks.polygons
    assert [len(p) for p in parts] == [1, 2]
    assert np.array_equal(parts[1][1], outline + 1)


def test_one_block_holds_all_and_is_writable():
    tensors = [torch.arange(100) for _ in range(5)]
    packed = pack(tensors)
    assert packed.block.numel() == 4 * 832 + 800  # 800 bytes each, from multiples of 64 on
    assert len(packed.pickled) < 800
    found = unpack(packed)
    found[0] += 1
    assert found[0].tolist() == list(range(1, 101))
    assert found[1].tolist() == list(range(100))
    assert all(t.data_ptr() % 8 == 0 for t in found)


def test_nothing():
    assert through_a_pipe([]) == []
