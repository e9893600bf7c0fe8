"""FCOS as a detector of boxes, as a proposal generator of Detectron2's own pipeline, and its detection limits."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from instseg_d2.modeling.proposal_generator.fcos_inference import DetectionLimits
from tests.tiny import random_batch, tiny_config, tiny_model


def test_detector_of_boxes():
    model = tiny_model("FCOSDetector")
    losses = model(random_batch([2, 0]))
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    model.proposal_generator.head.class_logits.bias.data.fill_(0.0)
    (output,) = model.eval()(random_batch([1]))
    assert set(output["instances"].get_fields()) == {"pred_boxes", "scores", "pred_classes"}
    assert 0 < len(output["instances"]) <= 100


def test_proposals_for_detectron2s_own_roi_heads():
    torch.manual_seed(0)
    cfg = tiny_config(
        "BlendMask",
        "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
        "MODEL.FCOS.YIELD_PROPOSAL", True,
        "MODEL.FCOS.POST_NMS_TOPK_TRAIN", 50,
        "MODEL.FCOS.INFERENCE_TH_TRAIN", 0.0,
        "MODEL.FCOS.INFERENCE_TH_TEST", 0.0,
        "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
        "MODEL.ROI_HEADS.IN_FEATURES", ["p3", "p4", "p5"],
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16,
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0,
        "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNConvFCHead",
        "MODEL.ROI_BOX_HEAD.NUM_FC", 1,
        "MODEL.ROI_BOX_HEAD.FC_DIM", 32,
        "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 7,
    )  # fmt: skip
    model = build_model(cfg)
    with EventStorage():  # Detectron2's heads report to it
        losses = model(random_batch([2, 3]))
    assert {"loss_fcos_cls", "loss_cls", "loss_box_reg"} <= set(losses)
    sum(losses.values()).backward()
    assert model.proposal_generator.head.class_logits.weight.grad is not None
    (output,) = model.eval()(random_batch([1]))
    assert len(output["instances"]) > 0


def test_proposals_carry_box_features():
    model = tiny_model("BlendMask", "MODEL.FCOS.YIELD_BOX_FEATURES", True, "MODEL.FCOS.INFERENCE_TH_TEST", 0.0).eval()
    images = model.preprocess(random_batch([1, 1]))
    features = model.backbone(images.tensor)
    fcos = model.proposal_generator
    proposals, losses = fcos(images, features)
    assert losses == {}
    outputs = fcos.outputs(features)
    for image, (proposal, found) in enumerate(zip(proposals, fcos.detect(outputs, images.image_sizes))):
        level, of, y, x = outputs.grid.locate(found.rows)
        assert (of == image).all()
        expected = torch.stack([outputs.box_tower[i][image, :, j, k] for i, j, k in zip(level, y, x)])
        assert torch.equal(proposal.box_features, expected)
        assert (proposal.proposal_boxes.tensor[:, 2] <= 128).all()


def test_in_training_no_proposals_unless_asked_for():
    model = tiny_model("FCOSDetector")
    batch = random_batch([2])
    images = model.preprocess(batch)
    proposals, losses = model.proposal_generator(images, model.backbone(images.tensor), model.gt_instances(batch))
    assert proposals is None
    assert losses


@pytest.mark.parametrize(
    ("limits", "check"),
    [
        (DetectionLimits(0.0, False, 1000, 10, 0.6), lambda n: n == 10),
        (DetectionLimits(0.0, False, 1000, 0, 0.0), lambda n: n > 100),
        (DetectionLimits(0.0, False, 5, 0, 0.0), lambda n: n <= 25),
        (DetectionLimits(1.0, False, 1000, 100, 0.6), lambda n: n == 0),
    ],
)
def test_limits(limits, check):
    model = tiny_model("BlendMask").eval()
    fcos = model.proposal_generator
    fcos.limits_test = limits
    images = model.preprocess(random_batch([1]))
    (found,) = fcos.detect(fcos.outputs(model.backbone(images.tensor)), images.image_sizes)
    assert check(len(found))
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)


def test_levels_must_match():
    with pytest.raises(ValueError, match="FPN_STRIDES"):
        tiny_model("BlendMask", "MODEL.FCOS.FPN_STRIDES", [8, 16])
    with pytest.raises(ValueError, match="IN_FEATURES names p9"):
        tiny_model("BlendMask", "MODEL.FCOS.IN_FEATURES", ["p3", "p4", "p5", "p6", "p9"])
