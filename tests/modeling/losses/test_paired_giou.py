"""The GIoU of boxes in pairs: torchvision's, value and gradient."""

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss

from instseg_d2.modeling.losses import paired_giou_loss


def test_equals_torchvisions():
    """Boxes that overlap, lie apart, touch, lie inside each other or are equal."""
    generator = torch.Generator().manual_seed(0)
    corner, side = torch.rand(2, 2, 400, 2, generator=generator, dtype=torch.float64)
    boxes, targets = torch.cat([corner, corner + side + 0.01], dim=-1) * 100
    targets[:40] = boxes[:40]
    targets[40:80] = boxes[40:80] + torch.tensor([1, 1, -0.5, -0.5])
    targets[80:120, 0], targets[80:120, 2] = boxes[80:120, 2], boxes[80:120, 2] + 5
    results = []
    for loss in (paired_giou_loss, generalized_box_iou_loss):
        leaf = boxes.clone().requires_grad_()
        values = loss(leaf, targets, **({"eps": 0.0} if loss is generalized_box_iou_loss else {}))
        values.sum().backward()
        results.append((values.detach(), leaf.grad))
    torch.testing.assert_close(*results)
    assert (results[0][0] > 1).sum() > 50  # apart


def test_by_hand():
    """Two unit squares one apart: no overlap, union 2, hull 3; then a half of the other."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 2, 1]])
    targets = torch.tensor([[2.0, 0, 3, 1], [0, 0, 1, 1]])
    assert paired_giou_loss(boxes, targets).tolist() == pytest.approx([1 + 1 / 3, 0.5])
    assert paired_giou_loss(boxes[:0], targets[:0]).shape == (0,)
