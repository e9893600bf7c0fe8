"""The pooler with one gather against Detectron2's, and by hand."""

import math

import pytest
import torch
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes

from instseg_d2.layers import PyramidPooler


def pyramid(batch=2, channels=5, height=96, width=128):
    return [torch.randn(batch, channels, height >> i, width >> i) for i in (2, 3, 4, 5)]


def some_boxes():
    """Inside, across every border, wholly outside, tiny, large: (2, 6, 4)."""
    boxes = [[10, 12, 60, 70], [-30, 5, 40, 200], [300, 300, 340, 350], [20, 20, 20.5, 21], [0, 0, 128, 96]]
    boxes = torch.tensor([*boxes, [-400, -300, 900, 800]])
    return torch.stack([boxes, boxes + 3.3])


@pytest.mark.parametrize(("resolution", "ratio"), [(7, 2), (4, 1), (28, 2)])
def test_pooler_is_roi_align_on_the_level_of_the_box(resolution, ratio):
    torch.manual_seed(0)
    maps = [x.requires_grad_() for x in pyramid()]
    boxes = some_boxes()
    found = PyramidPooler([4, 8, 16, 32], resolution, ratio)(maps, boxes)
    pooler = ROIPooler(resolution, [1 / 4, 1 / 8, 1 / 16, 1 / 32], ratio, "ROIAlignV2")
    expected = pooler(maps, [Boxes(x) for x in boxes]).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(found)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), maps), torch.autograd.grad((expected * weights).sum(), maps)
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_maps_in_bfloat16():
    """They keep their type for inference on a CPU; the sums are made in float32 and rounded once."""
    torch.manual_seed(0)
    maps, boxes = [x.bfloat16() for x in pyramid()], some_boxes()
    pooler = PyramidPooler([4, 8, 16, 32], 7)
    exact = pooler(maps, boxes)
    with torch.no_grad():
        found = pooler(maps, boxes)
    assert (exact.dtype, found.dtype) == (torch.float32, torch.bfloat16)
    torch.testing.assert_close(found.float(), exact, rtol=0.01, atol=0.01)


def test_pooler_by_hand_and_with_boxes_that_are_no_numbers():
    maps = [torch.arange(64.0).view(1, 1, 8, 8)]
    pooler = PyramidPooler([4], 2, 1)
    found = pooler(maps, torch.tensor([[[4.0, 8, 20, 24]]]))
    # The box covers cells 1..5 and 2..6; its four bins have their centres half a cell back, at 1.5, 3.5 and 2.5, 4.5.
    assert found.flatten().tolist() == [8 * y + x for y in (2.5, 4.5) for x in (1.5, 3.5)]
    assert pooler(maps, torch.full((1, 3, 4), math.nan)).shape == (3, 4, 1)
    assert pooler(maps, torch.full((1, 3, 4), 1e30)).isfinite().all()


def test_levels_of_boxes():
    sides = torch.tensor([1.0, 111, 112, 223, 224, 447, 448, 9999])
    boxes = torch.cat([torch.zeros(8, 2), sides[:, None].repeat(1, 2)], 1)
    assert PyramidPooler([4, 8, 16, 32], 7).levels(boxes).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
