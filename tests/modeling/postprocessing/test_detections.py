"""Detections at the output size: Detectron2's postprocessing as oracle."""

import pytest
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances

from instseg_d2.modeling.postprocessing import place_boxes, select_detections


@pytest.mark.parametrize("count", [0, 50])
def test_boxes_at_the_output(count):
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator) * 200 - 50  # some lie outside
    result = Instances((100, 120), pred_boxes=Boxes(torch.cat([corner, corner + 30], dim=1)))
    result.scores = torch.rand(count, generator=generator)
    before = result.pred_boxes.tensor.clone()
    found = place_boxes(result, (150, 130))
    assert torch.equal(result.pred_boxes.tensor, before)
    expected = detector_postprocess(result, 150, 130)
    assert found.image_size == expected.image_size
    assert len(found) == 0 if count == 0 else 0 < len(found) < count
    assert torch.equal(found.scores, expected.scores)
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor)


def test_chosen():
    result = Instances((9, 9), scores=torch.tensor([0.1, 0.2, 0.3]))
    assert select_detections(result, result.scores > 0) is result  # full-size masks are not copied
    assert torch.equal(select_detections(result, result.scores > 0.15).scores, result.scores[1:])
