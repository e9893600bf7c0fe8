"""Targets of EmbedMask against loops: masks on the canvas, positives inside masks, chosen locations."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, PolygonMasks

from instseg_d2.modeling.embedmask.criterion import mean_per_object, object_weights
from instseg_d2.modeling.embedmask.targets import GroundTruth, box_ious, choose_locations
from instseg_d2.modeling.proposal_generator.fcos_targets import assign
from tests.modeling.proposal_generator.test_fcos_targets import RANGES, grid_for, naive_assign, random_boxes
from tests.tiny import random_instances


def ground_truth(counts=(3, 0, 2), sizes=((60, 90), (64, 96), (40, 50)), canvas=(64, 96)):
    generator = torch.Generator().manual_seed(0)
    instances = [random_instances(n, *size, 3, generator) for n, size in zip(counts, sizes)]
    return instances, GroundTruth(instances, canvas)


def test_masks_lie_on_one_canvas():
    instances, truth = ground_truth()
    assert truth.masks.shape == (5, 64, 96)
    assert truth.images.tolist() == [0, 0, 0, 2, 2]
    index = 0
    for x in instances:
        for mask in x.gt_masks.tensor:
            padded = F.pad(mask, (0, 96 - mask.shape[1], 0, 64 - mask.shape[0]))
            assert torch.equal(truth.masks[index], padded)
            index += 1


def test_polygons_are_rasterised():
    instances, _ = ground_truth()
    polygons = PolygonMasks([[[5.0, 5.0, 30.0, 6.0, 28.0, 30.0]]] * 3)
    instances[0].gt_masks = polygons
    instances[1].gt_masks = PolygonMasks([])
    truth = GroundTruth(instances, (64, 96))
    assert torch.equal(truth.masks[:3, :60, :90], BitMasks.from_polygon_masks(polygons, 60, 90).tensor)
    assert not truth.masks[:3, 60:].any()


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_cells_are_the_bilinear_masks_above_zero(stride):
    _, truth = ground_truth()
    truth.masks |= torch.rand(truth.masks.shape, generator=torch.Generator().manual_seed(1)) < 0.02
    size = (64 // stride, 96 // stride)
    expected = F.interpolate(truth.masks[None].float(), size, mode="bilinear", align_corners=False)[0] > 0
    assert torch.equal(truth.cells(stride), expected)


def test_locations_in_masks():
    _, truth = ground_truth()
    generator = torch.Generator().manual_seed(2)
    objects = torch.randint(0, 5, (500,), generator=generator)
    xy = torch.randint(-20, 140, (500, 2), generator=generator).float()
    expected = [
        0 <= x < 96 and 0 <= y < 64 and bool(truth.masks[k, int(y), int(x)])
        for k, (x, y) in zip(objects.tolist(), xy.tolist())
    ]
    assert truth.contains(objects, xy).tolist() == expected
    assert any(expected)


@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("center_sample", [True, False])
def test_positives_inside_masks_equal_the_loop(center_sample, inclusive):
    """A smaller object that does not hold the location leaves it to a larger one that does."""
    generator = torch.Generator().manual_seed(4)
    boxes_per_image = [random_boxes(n, generator, True) for n in (8, 0, 14)]
    sizes, grid = grid_for(256, 320, 3)
    masks = torch.rand(22, 384, 384, generator=generator) < 0.6

    def allowed(objects, xy):
        return torch.tensor([bool(masks[k, int(y), int(x)]) for k, (x, y) in zip(objects, xy)], dtype=torch.bool)

    def allowed_one(index, x, y):
        return bool(masks[index, y, x])

    boxes = torch.tensor([b for image in boxes_per_image for b in image])
    images = torch.tensor([0] * 8 + [2] * 14)
    found = assign(
        grid, boxes, images, torch.tensor(RANGES), center_sample=center_sample, radius=1.5,
        allowed=allowed, inclusive=inclusive,
    )  # fmt: skip
    expected = naive_assign(sizes, boxes_per_image, center_sample, 1.5, allowed_one, int(inclusive))
    assert found.rows.tolist() == [p[0] for p in expected]
    assert found.objects.tolist() == [p[1] for p in expected]
    assert len(expected) > 20
    free = naive_assign(sizes, boxes_per_image, center_sample, 1.5)
    assert [p[:2] for p in free] != [p[:2] for p in expected]


def test_inclusive_ious():
    a = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 0.0, 0.0]])
    b = torch.tensor([[5.0, 0.0, 14.0, 9.0], [0.0, 0.0, 1.0, 1.0]])
    torch.testing.assert_close(box_ious(a, b, True), torch.tensor([50 / 150, 1 / 4]))
    torch.testing.assert_close(box_ious(a[:1], b[:1], False), torch.tensor([36 / 126]))


@pytest.mark.parametrize("averaged", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_chosen_locations_equal_the_loop(averaged, seed):
    generator = torch.Generator().manual_seed(seed)
    objects = torch.randint(0, 9, (60,), generator=generator)
    objects[objects == 4] = 3
    ious = (torch.rand(60, generator=generator) * 8).round() / 8  # ties
    ious[objects == 2] *= 0.5
    ious[objects == 6] = 0
    expected = []
    for k in range(10):
        places = [i for i in range(60) if objects[i] == k]
        if not places:
            continue
        best = max(float(ious[i]) for i in places)
        if averaged:
            good = [i for i in places if ious[i] > 0.5]
            expected += good or [i for i in places if ious[i] == best]
        else:
            expected.append(next(i for i in places if ious[i] == best))
    assert sorted(choose_locations(ious, objects, 10, 0.5, averaged).tolist()) == sorted(expected)


def test_no_positives():
    empty = torch.zeros(0, dtype=torch.int64)
    for averaged in (False, True):
        assert choose_locations(torch.zeros(0), empty, 3, 0.5, averaged).shape == (0,)
    means, counts = mean_per_object(torch.zeros(0, 5), empty, 3)
    assert means.shape == (3, 5)
    assert counts.tolist() == [0, 0, 0]


def test_means_and_weights_by_hand():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]])
    means, counts = mean_per_object(values, torch.tensor([2, 2, 0]), 4)
    assert means.tolist() == [[10.0, 0.0], [0.0, 0.0], [2.0, 3.0], [0.0, 0.0]]
    assert counts.tolist() == [1, 0, 2, 0]
    weights = object_weights(torch.tensor([0, 0, 2]), 4)
    assert weights.tolist() == [0.125, 0.125, 0.25]
