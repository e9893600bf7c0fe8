"""The ground truth of every method."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from torchvision.ops import roi_align

from instseg_d2.errors import DatasetError
from instseg_d2.modeling.ground_truth import box_masks, canvas_masks, crop_masks, pad_maps, semantic_map
from tests.tiny import random_batch, tiny_model

METHODS = ["BlendMask", "EmbedMask", "SparseInst"]


@pytest.mark.parametrize("method", METHODS)
def test_images_without_objects_need_no_masks(method):
    """Detectron2's mapper gives gt_masks to images with objects alone."""
    losses = []
    for strip in (False, True):
        model, batch = tiny_model(method), random_batch([0, 2])
        if strip:
            batch[0]["instances"].remove("gt_masks")
        losses.append(model(batch))
        assert batch[0]["instances"].has("gt_masks") != strip
    torch.testing.assert_close(losses[0], losses[1])


@pytest.mark.parametrize("method", METHODS)
def test_objects_without_masks_are_told_of(method):
    batch = random_batch([0, 2])
    batch[1]["instances"].remove("gt_masks")
    with pytest.raises(DatasetError, match=rf"{method} trains on masks: set MODEL\.MASK_ON"):
        tiny_model(method)(batch)


POLYGONS = [
    [[[5.0, 5.0, 30.0, 6.0, 28.0, 30.0]], [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0], [20.0, 20.0, 39.0, 20.0, 39.0, 25.0]]],
    [],
    [[[10.0, 3.0, 44.0, 3.0, 44.0, 17.0, 12.0, 18.0]]],
]
SIZES = [(40, 48), (37, 20), (20, 50)]
CANVAS = (40, 56)


def images_of_objects(kind):
    """Three images of different sizes, the second without objects, and the pixels of each by pycocotools."""
    images, pixels = [], []
    for polygons, size in zip(POLYGONS, SIZES):
        masks = [mask_util.decode(mask_util.merge(mask_util.frPyObjects(x, *size))).astype(bool) for x in polygons]
        masks = np.stack(masks) if masks else np.zeros((0, *size), bool)
        ys, xs = (np.array([np.flatnonzero(m.any(axis))[[0, -1]] for m in masks]).reshape(-1, 2) for axis in (1, 0))
        boxes = np.stack([xs[:, 0], ys[:, 0], xs[:, 1] + 1, ys[:, 1] + 1], 1)
        instances = Instances(size, gt_boxes=Boxes(torch.tensor(boxes, dtype=torch.float32)))
        instances.gt_masks = PolygonMasks(polygons) if kind == "polygon" else BitMasks(torch.from_numpy(masks))
        instances.gt_classes = torch.arange(len(masks)) + 4
        images.append(instances)
        pixels.append(masks)
    return images, pixels


@pytest.mark.parametrize("kind", ["polygon", "bitmask"])
@pytest.mark.parametrize(("stride", "first"), [(1, 0), (4, 0), (4, 2), (8, 4), (3, 1)])
def test_masks_on_a_canvas(kind, stride, first):
    images, pixels = images_of_objects(kind)
    expected = []
    for masks in pixels:
        for mask in masks:
            canvas = np.zeros(CANVAS, bool)
            canvas[: mask.shape[0], : mask.shape[1]] = mask
            expected.append(canvas[first::stride, first::stride])
    found = canvas_masks(images, CANVAS, stride, first)
    assert found.dtype == torch.bool
    np.testing.assert_array_equal(found.numpy(), np.stack(expected))
    assert canvas_masks(images[1:2], CANVAS, stride, first).shape == (0, *expected[0].shape)


def test_masks_in_boxes():
    """Polygons and bitmasks cropped to their boxes, and one mask to several boxes."""
    images, pixels = images_of_objects("bitmask")
    found = box_masks(images, 14, "gt_boxes")
    boxes = torch.cat([x.gt_boxes.tensor for x in images])
    masks = [torch.from_numpy(mask)[None, None].float() for image in pixels for mask in image]
    for crop, mask, box in zip(found, masks, boxes):
        value = roi_align(mask, [box[None]], 14, aligned=True)[0, 0]
        assert torch.equal(crop, value >= 0.5)
    polygons = box_masks(images_of_objects("polygon")[0], 14, "gt_boxes")
    assert (polygons != found).float().mean() < 0.08  # they are rasterised at the box's own resolution

    objects, others = torch.tensor([1, 0, 1]), torch.tensor([[0.0, 0, 20, 20], [3, 3, 33, 31], [20, 20, 39, 25]])
    crops = crop_masks(images[0].gt_masks.tensor, objects, others, 14)
    for crop, index, box in zip(crops, objects.tolist(), others):
        assert torch.equal(crop, roi_align(masks[index], [box[None]], 14, aligned=True)[0, 0] >= 0.5)


@pytest.mark.parametrize("kind", ["polygon", "bitmask"])
def test_semantic_maps_pixel_by_pixel(kind):
    images, pixels = images_of_objects(kind)
    maps = [semantic_map(x, 2) for x in images]
    for labels, masks, size in zip(maps, pixels, SIZES):
        expected = np.zeros(size, np.int64)
        for index, mask in enumerate(masks):
            expected[mask] = index + 5
        np.testing.assert_array_equal(labels.numpy(), expected[::2, ::2])
    padded = pad_maps(maps, (20, 28), 255, "cpu")
    assert padded.shape == (3, 20, 28)
    assert torch.equal(padded[2, :10, :25], maps[2])
    assert padded[2, 10:].eq(255).all()
    assert padded[2, :, 25:].eq(255).all()
