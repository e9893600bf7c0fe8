"""How boxes and queries go from head to head, by hand."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from tests.tiny import random_batch, tiny_config, tiny_model

METHOD = "MODEL.ISTR.MASK_ENCODING_METHOD"


def test_start_of_the_refinement():
    model = tiny_model("ISTR")
    batch = random_batch([0], 70, 100) + random_batch([0], 96, 64)
    images = model.preprocess(batch)
    assert images.tensor.shape[-2:] == (96, 128)
    features, boxes, queries = model.initial_state(images)
    for image, (height, width) in enumerate([(70, 100), (96, 64)]):
        for n, (x, y, w, h) in enumerate(model.initial_boxes.weight.tolist()):
            wanted = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            torch.testing.assert_close(boxes[image, n], torch.tensor(wanted), rtol=1e-4, atol=1e-3)
            mean = sum(features[name][image].flatten(1).mean(1) for name in ("p2", "p3", "p4", "p5"))
            torch.testing.assert_close(queries[image, n], mean + model.query_embedding.weight[n])
    assert boxes.requires_grad


def test_boxes_start_as_the_whole_image():
    model = build_model(tiny_config("ISTR"))
    images = model.preprocess(random_batch([0], 70, 100))
    _, boxes, _ = model.initial_state(images)
    assert boxes.tolist() == [[[0.0, 0.0, 100.0, 70.0]] * 10]


def test_boxes_through_the_heads():
    """Weights 2, 2, 1, 1 and the clamp by hand; a gradient between heads for the queries, none for the boxes."""
    model = tiny_model("ISTR", "MODEL.ISTR.NUM_HEADS", 2)
    images = model.preprocess(random_batch([0]))
    features, boxes, queries = model.initial_state(images)
    maps = model.roi_heads.maps(features)
    rows = model.roi_heads.pooler.rows(maps)
    for head, bias in zip(model.roi_heads.heads, ([0.4, -0.2, 0.0, 20.0], [0.0, 0.0, math.log(2), -math.log(2)])):
        nn.init.zeros_(head.box_deltas.weight)
        head.box_deltas.bias.data = torch.tensor(bias)
    boxes = torch.tensor([[[10.0, 20, 30, 60]]])
    first, second = model.roi_heads.refine(maps, rows, boxes.requires_grad_(), queries[:, :1])
    height = 40 * 100000 / 16
    expected = torch.tensor([14.0, 36 - height / 2, 34, 36 + height / 2])
    torch.testing.assert_close(first.boxes[0, 0], expected)
    torch.testing.assert_close(second.boxes[0, 0], torch.tensor([4.0, 36 - height / 4, 44, 36 + height / 4]))
    assert torch.autograd.grad(first.boxes.sum(), boxes, retain_graph=True)[0].any()
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(second.boxes.sum(), boxes, retain_graph=True)
    assert torch.autograd.grad(second.queries.pow(3).sum(), first.queries)[0].any()
