"""ISTR and SparseInst by name as ROI heads of Detectron2's Mask R-CNN: the meta-architectures' own results."""

import copy

import numpy as np
import pytest
import torch
from detectron2.engine import DefaultPredictor
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from instseg_d2.errors import CheckpointError, ConfigError, DatasetError
from instseg_d2.modeling.sparseinst.inference import CanvasMasks
from tests.tiny import random_batch, tiny_config, tiny_model

ISTR = ["MODEL.ROI_HEADS.NAME", "ISTRHeads", "MODEL.ISTR.MASK_ENCODING_METHOD", "DCT"]
SPARSE = ["MODEL.ROI_HEADS.NAME", "SparseInstHeads", "MODEL.RESNETS.NORM", "BN"]
NO_PROPOSALS = ["MODEL.PROPOSAL_GENERATOR.NAME", "NoProposals"]
PLAIN_RESNET = [*NO_PROPOSALS, "MODEL.BACKBONE.NAME", "build_resnet_backbone"]
PLAIN_RESNET += ["MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]]
LAST_ISTR = {"loss_ce_1", "loss_bbox_1", "loss_giou_1", "loss_feat_1", "loss_dice_1"}
SPARSE_LOSSES = {"loss_ce", "loss_mask", "loss_dice", "loss_objectness"}


@pytest.mark.parametrize(
    ("opts", "losses", "generator"),
    [
        pytest.param(ISTR, LAST_ISTR, {"loss_rpn_cls", "loss_rpn_loc"}, id="istr-rpn"),
        pytest.param([*ISTR, *NO_PROPOSALS], LAST_ISTR, set(), id="istr"),
        pytest.param(SPARSE, SPARSE_LOSSES, {"loss_rpn_cls", "loss_rpn_loc"}, id="sparse-rpn"),
        pytest.param([*SPARSE, *PLAIN_RESNET], SPARSE_LOSSES, set(), id="sparse-resnet"),
    ],
)
def test_trains_and_infers_by_name(opts, losses, generator):
    model = tiny_model("MaskRCNN", *opts)
    for counts in ((2, 1), (0, 0)):
        with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=counts[0] == 2):
            found = model(random_batch(counts, height=90, width=130))
        assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in found.values())
        assert losses | generator <= set(found)
        assert generator or not any("rpn" in name for name in found)
        sum(found.values()).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        model.zero_grad()
    for output in model.eval()(random_batch([1, 0], height=90, width=130)):
        found = output["instances"]
        assert found.pred_masks.shape == (len(found), 90, 130)
        assert found.pred_masks.dtype == torch.bool


@pytest.mark.parametrize("opts", [ISTR, SPARSE], ids=["istr", "sparse"])
def test_images_without_objects_need_no_masks(opts):
    """Detectron2's mapper gives gt_masks to images with objects alone."""
    results = []
    for strip in (False, True):
        model, batch = tiny_model("MaskRCNN", *opts, *NO_PROPOSALS), random_batch([0, 2], height=90, width=130)
        if strip:
            batch[0]["instances"].remove("gt_masks")
        with EventStorage():
            results.append(model(batch))
        assert batch[0]["instances"].has("gt_masks") != strip
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("num_classes", [1, 2, 7])
@pytest.mark.parametrize("opts", [ISTR, SPARSE], ids=["istr", "sparse"])
def test_classes_are_those_of_the_roi_heads(opts, num_classes):
    model = tiny_model("MaskRCNN", *opts, "MODEL.ROI_HEADS.NUM_CLASSES", num_classes)
    heads = model.roi_heads
    layer = heads.decoder.instance_branch.class_logits if opts is SPARSE else heads.heads[0].class_logits
    assert layer.out_features == num_classes


@pytest.mark.parametrize("opts", [ISTR, SPARSE], ids=["istr", "sparse"])
def test_default_predictor(opts):
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    small = ["INPUT.MIN_SIZE_TEST", 64, "TEST.DETECTIONS_PER_IMAGE", 5]
    found = DefaultPredictor(tiny_config("MaskRCNN", *opts, *NO_PROPOSALS, *small))(image)["instances"]
    assert found.pred_masks.shape == (len(found), 50, 70)
    cfg = tiny_config("MaskRCNN", *SPARSE, *small, "MODEL.SPARSE_INST.CLS_THRESHOLD", 1.0)
    assert DefaultPredictor(cfg)(image)["instances"].pred_masks.shape == (0, 50, 70)


@pytest.mark.parametrize(
    ("opts", "name"), [(ISTR, "ISTR"), ([*SPARSE, *PLAIN_RESNET], "SparseInst")], ids=["istr", "sparse"]
)
def test_same_losses_and_results_as_the_meta_architecture(opts, name):
    """With the same weights; height and width are multiples of 32, so that both pad alike."""
    cfg = tiny_config("MaskRCNN", *opts, *NO_PROPOSALS, "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 2)
    torch.manual_seed(0)
    model = META_ARCH_REGISTRY.get("GeneralizedRCNN")(cfg)
    other = META_ARCH_REGISTRY.get(name)(cfg)
    weights = model.state_dict()
    if name == "ISTR":
        centres, sizes = torch.rand(2, 10, 2)
        weights["roi_heads.initial_boxes.weight"] = torch.cat([centres, 0.2 + 0.6 * sizes], dim=1)
        for head in range(2):
            for part in ("weight", "bias"):  # boxes that stay in the image
                weights[f"roi_heads.heads.{head}.box_deltas.{part}"] *= 0.01
        model.load_state_dict(weights)
    own = {key for key in other.state_dict() if key.split(".")[0] not in ("backbone", "roi_heads")}
    renamed = {
        key.removeprefix("roi_heads.") if key.removeprefix("roi_heads.") in own or name == "SparseInst" else key: value
        for key, value in weights.items()
    }
    other.load_state_dict(renamed)

    batch = random_batch([2, 1])
    for x in batch:
        x["height"], x["width"] = 120, 150
    with EventStorage():
        expected, actual = (m.train()(copy.deepcopy(batch)) for m in (other, model))
    assert set(actual) == set(expected)
    for key, loss in expected.items():
        torch.testing.assert_close(actual[key], loss, rtol=1e-4, atol=1e-5)
    for expected, actual in zip(other.eval()(copy.deepcopy(batch)), model.eval()(copy.deepcopy(batch))):
        expected, actual = expected["instances"], actual["instances"]
        visible = expected.pred_boxes.nonempty()  # Detectron2 drops empty masks
        expected = expected[visible]
        assert len(actual) == len(expected) > 0
        torch.testing.assert_close(actual.scores, expected.scores)
        assert torch.equal(actual.pred_classes, expected.pred_classes)
        assert (actual.pred_masks != expected.pred_masks).float().mean() < 1e-3
        # Tight at the input's resolution, scaled to the output's.
        torch.testing.assert_close(actual.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=2.5)


def test_masks_of_the_canvas():
    """A square of 8 x 8 cells on a canvas of 64 x 96 pixels, of which 60 x 90 are image; twice as large in the end."""
    masks = torch.zeros(2, 16, 24)
    masks[0, 4:12, 6:14] = 1.0
    wide = CanvasMasks(masks, (64, 96), (60, 90), 0.45)
    picked = wide.to("cpu")[torch.tensor([0])]
    assert (len(wide), len(picked)) == (2, 1)
    assert (picked.canvas, picked.crop, picked.threshold) == ((64, 96), (60, 90), 0.45)
    result = Instances((60, 90), pred_masks=wide, pred_boxes=Boxes(torch.tensor([[24.0, 16, 56, 48], [0, 0, 0, 0]])))
    result = detector_postprocess(result, 120, 180)
    assert result.pred_masks.shape == (1, 120, 180)
    assert result.pred_boxes.tensor.tolist() == [[48, 32, 112, 96]]
    ys, xs = result.pred_masks[0].nonzero().unbind(1)
    assert max(abs(xs.min() - 48), abs(xs.max() - 111), abs(ys.min() - 32), abs(ys.max() - 95)) <= 1


def test_what_cannot_be_used_is_named():
    with pytest.raises(ConfigError, match=r"ENCODER\.IN_FEATURES names res7"):
        tiny_model("MaskRCNN", *SPARSE, "MODEL.SPARSE_INST.ENCODER.IN_FEATURES", ["res3", "res7"])
    with EventStorage(), pytest.raises(CheckpointError, match=r"PCA mask embedding is not fitted.*ensure_fitted.*DCT"):
        tiny_model("MaskRCNN", *ISTR, "MODEL.ISTR.MASK_ENCODING_METHOD", "", "MODEL.ISTR.MASK_DIM", 8)(
            random_batch([1])
        )
    model = tiny_model("MaskRCNN", *SPARSE, *NO_PROPOSALS)
    batch = random_batch([1])
    batch[0]["instances"].remove("gt_masks")
    with EventStorage(), pytest.raises(DatasetError, match=r"SparseInstHeads trains on masks.*MASK_ON"):
        model(batch)
