"""Mask codes by name in Detectron2's Mask R-CNN."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from instseg_d2.errors import CheckpointError
from instseg_d2.modeling.istr.mask_head import MaskEmbeddingHead
from tests.tiny import random_batch, tiny_config

HEAD = [
    "MODEL.ROI_MASK_HEAD.NAME", "MaskEmbeddingHead",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 28,
    "MODEL.ISTR.MASK_FEAT_DIM", 20,
]  # fmt: skip


@pytest.mark.parametrize("method", ["DCT", "AE"])
def test_trains_and_infers_by_name(method):
    torch.manual_seed(0)
    model = build_model(tiny_config("MaskRCNN", *HEAD, "MODEL.ISTR.MASK_ENCODING_METHOD", method))
    if method == "AE":
        with EventStorage(), pytest.raises(CheckpointError, match="AE mask embedding is not fitted"):
            model(random_batch([1]))
        model.roi_heads.mask_head.mask_embedding.encoder[1].num_batches_tracked += 1  # as if it had been fitted
    for counts in ((2, 1), (0, 0)):
        with EventStorage():
            losses = model(random_batch(counts))
        assert torch.isfinite(losses["loss_mask"])
        assert (losses["loss_mask"] > 0) == (sum(counts) > 0)
        sum(losses.values()).backward()
        grads = {name: p.grad for name, p in model.roi_heads.mask_head.named_parameters() if p.requires_grad}
        assert all(g is not None and torch.isfinite(g).all() for g in grads.values())
        model.zero_grad()
    (output,) = model.eval()(random_batch([1]))
    found = output["instances"]
    assert found.pred_masks.shape == (len(found), 96, 128)
    assert found.pred_masks.dtype == torch.bool


def test_losses_by_hand():
    """Smooth L1 of the codes and five times dice of the decoded masks, the mean over the proposals."""
    torch.manual_seed(0)
    head = MaskEmbeddingHead(
        tiny_config("MaskRCNN", *HEAD, "MODEL.ISTR.MASK_ENCODING_METHOD", "DCT"), ShapeSpec(channels=8)
    )
    instances = [x["instances"] for x in random_batch([2, 0, 1])]
    for x in instances:
        x.proposal_boxes = Boxes(x.gt_boxes.tensor + 3.0)
    codes = torch.randn(3, 20)
    found = head.losses(codes, instances)
    expected, embedding = 0.0, head.mask_embedding
    pairs = [(x[i], code) for (x, i), code in zip(((instances[0], 0), (instances[0], 1), (instances[2], 0)), codes)]
    for x, code in pairs:
        crop = x.gt_masks.crop_and_resize(x.proposal_boxes.tensor, 112)[0].float()
        mask = embedding.decode(code[None])[0]
        dice = 2 * (mask * crop).sum() / ((mask**2).sum() + (crop**2).sum() + 1e-5)
        expected += F.smooth_l1_loss(code, embedding.encode(crop[None])[0]) + 5 * (1 - dice)
    torch.testing.assert_close(found, expected / 3)


def test_masks_are_pasted_at_the_threshold():
    """Detectron2 pastes a mask where it is at least 0.5, version 2 of ISTR where it is 0.45."""
    torch.manual_seed(0)
    head = MaskEmbeddingHead(
        tiny_config("MaskRCNN", *HEAD, "MODEL.ISTR.MASK_ENCODING_METHOD", "DCT"), ShapeSpec(channels=8)
    ).eval()
    features = torch.randn(2, 8, 28, 28)
    (found,) = head(features, [Instances((96, 128), pred_boxes=Boxes(torch.ones(2, 4)))])
    masks = head.mask_embedding.decode(head.branch(None, features)[0])
    assert ((masks > 0.45) == (found.pred_masks[:, 0] > 0.5)).all()
    torch.testing.assert_close(found.pred_masks[:, 0] * 0.45, masks * 0.5)


def test_the_pooled_features_have_to_fit():
    with pytest.raises(ValueError, match="POOLER_RESOLUTION 28"):
        MaskEmbeddingHead(
            tiny_config("MaskRCNN", *HEAD, "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 14), ShapeSpec(channels=8)
        )
