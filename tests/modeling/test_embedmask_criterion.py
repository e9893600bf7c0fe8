"""The memory of EmbedMask's mask loss over whole maps."""

import weakref

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from instseg_d2.modeling.embedmask import criterion as module
from instseg_d2.modeling.embedmask.criterion import MaskCriterion
from instseg_d2.modeling.embedmask.targets import GroundTruth


def many_objects(count, height, width):
    """A batch of one image with ``count`` small objects, D = 4 pixel embeddings at stride 4, a proposal an object."""
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand((count, 2), generator=generator) * torch.tensor([width - 24.0, height - 24.0])
    boxes = torch.cat([corners, corners + 20], 1)
    masks = torch.zeros((count, height, width), dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist()):
        mask[y1:y2, x1:x2] = True
    instances = Instances((height, width), gt_boxes=Boxes(boxes), gt_masks=BitMasks(masks))
    pixels = torch.randn((1, 4, height // 4, width // 4), generator=generator).requires_grad_()
    embeddings = torch.randn((count, 4), generator=generator).requires_grad_()
    margins = torch.rand((count, 4), generator=generator).requires_grad_()
    return pixels, embeddings, margins, GroundTruth([instances], (height, width))


def mask_loss(pixels, embeddings, margins, truth):
    criterion = MaskCriterion(averaged=False, least_probability=1e-9, stride=4, iou_threshold=0.5, box_padding=-1)
    return criterion(pixels, embeddings, margins, torch.arange(len(embeddings)), truth)["mask_loss"]


def test_375_objects_keep_one_number_a_cell(monkeypatch):
    """The sort sees a bounded number of cells at a time, and the backward pass finds 4 bytes of each."""
    most, saved = [], []
    hinge = module.lovasz_hinge
    monkeypatch.setattr(module, "lovasz_hinge", lambda logits, *rest: most.append(len(logits)) or hinge(logits, *rest))

    def keep(tensor):
        saved.append(weakref.ref(tensor))
        return tensor

    inputs = many_objects(375, 384, 512)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = mask_loss(*inputs)
    cells = 375 * 96 * 128
    assert sum(most) == cells
    assert max(most) <= module.CELLS_AT_ONCE < cells / 8
    alive = [tensor().untyped_storage() for tensor in saved if tensor() is not None]
    kept = {storage.data_ptr(): storage.nbytes() for storage in alive}
    assert 4 * cells <= sum(kept.values()) <= 4.2 * cells + sum(4 * x.numel() for x in inputs[:3])
    loss.backward()
    assert all(x.grad.isfinite().all() and x.grad.any() for x in inputs[:3])


@pytest.mark.parametrize("cells", [1, 5000])
def test_parts_change_nothing(monkeypatch, cells):
    results = []
    for at_once in (2**30, cells):
        monkeypatch.setattr(module, "CELLS_AT_ONCE", at_once)
        *inputs, truth = many_objects(7, 96, 128)
        loss = mask_loss(*inputs, truth)
        loss.backward()
        results.append((loss.detach(), *(x.grad for x in inputs)))
    for whole, parts in zip(*results):
        torch.testing.assert_close(parts, whole)
