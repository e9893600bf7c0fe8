"""The tiled start: boxes on grids, which untrained heads hardly move."""

import pytest
import torch

from instseg_d2.modeling.build import build
from instseg_d2.modeling.istr.inference import tiled_boxes
from tests.tiny import random_batch, tiny_config


def test_boxes_of_grids_and_the_rest():
    """7: the image, 2 x 2, and two more side by side."""
    whole, quarters, rest = [[0.5, 0.5, 1, 1]], [], [[0.25, 0.5, 0.75, 1], [0.75, 0.5, 0.75, 1]]
    for y in (0.25, 0.75):
        quarters += [[x, y, 0.75, 0.75] for x in (0.25, 0.75)]
    assert torch.allclose(tiled_boxes(7).weight, torch.tensor(whole + quarters + rest))
    assert tiled_boxes(7).weight.requires_grad


@pytest.mark.parametrize("count", [1, 5, 21, 50, 57, 300])
def test_as_many_different_boxes_as_queries(count):
    boxes = tiled_boxes(count).weight
    assert boxes.shape == (count, 4)
    assert len(boxes.unique(dim=0)) == count
    assert boxes.min() > 0
    assert boxes.max() <= 1


def test_heads_hardly_move_the_boxes():
    torch.manual_seed(0)
    model = build(tiny_config("ISTR", "MODEL.ISTR.START", "tiles")).eval()
    images = model.preprocess(random_batch([0]))
    features, boxes, queries = model.initial_state(images)
    final = model.roi_heads(features, boxes, queries).boxes[-1]
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    assert ((final - boxes).abs() / sides).max() < 0.1
