"""Mask heads by name in Detectron2's Mask R-CNN, Cascade R-CNN and over FCOS; BlendMask's and EmbedMask's by hand."""

import copy
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.engine import DefaultPredictor, DefaultTrainer
from detectron2.evaluation import COCOEvaluator
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import roi_align

from instseg_d2.data import register_coco
from instseg_d2.data.shapes.instances import make_shapes
from instseg_d2.errors import ConfigError
from instseg_d2.modeling.blendmask import BlendMaskHead
from instseg_d2.modeling.embedmask import EmbedMaskHead
from tests.tiny import random_batch, tiny_config, tiny_model

CASCADE = ["MODEL.ROI_HEADS.NAME", "CascadeROIHeads", "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True]
FCOS = [
    "MODEL.PROPOSAL_GENERATOR.NAME", "FCOS",
    "MODEL.BACKBONE.NAME", "build_fcos_resnet_fpn_backbone",
    "MODEL.FCOS.NUM_CLS_CONVS", 1,
    "MODEL.FCOS.NUM_BOX_CONVS", 1,
    "MODEL.FCOS.INFERENCE_TH_TEST", 0.001,  # untrained scores are low
]  # fmt: skip
BLEND = ["MODEL.ROI_MASK_HEAD.NAME", "BlendMaskHead", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]
EMBED = ["MODEL.ROI_MASK_HEAD.NAME", "EmbedMaskHead", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]
ASSEMBLE = ["MODEL.ROI_MASK_HEAD.NAME", "AssembleMaskHead", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]
CODES = [
    "MODEL.ROI_MASK_HEAD.NAME", "MaskEmbeddingHead",
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 28,
    "MODEL.ISTR.MASK_ENCODING_METHOD", "DCT",
]  # fmt: skip
SHAPES = {"p3": ShapeSpec(channels=32, stride=8)}
RPN_LOSSES = {"loss_rpn_cls", "loss_rpn_loc"}
FCOS_LOSSES = {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}


@pytest.mark.parametrize(
    ("head", "detector", "losses"),
    [
        pytest.param(head, detector, losses, id=f"{head[1]}-{name}")
        for head in (BLEND, EMBED, ASSEMBLE, CODES)
        for name, detector, losses in (
            ("rpn", [], RPN_LOSSES),
            ("cascade", CASCADE, RPN_LOSSES),
            ("fcos", FCOS, FCOS_LOSSES),
        )
        if name != "rpn" or head in (BLEND, EMBED)
    ],
)
def test_trains_and_infers_by_name(head, detector, losses):
    model = tiny_model("MaskRCNN", *head, *detector)
    for counts in ((2, 0), (0, 0)):
        with EventStorage():
            found = model(random_batch(counts))
        assert all(torch.isfinite(loss) for loss in found.values())
        assert (found["loss_mask"] > 0) == (sum(counts) > 0)
        assert losses | {"loss_mask"} <= set(found)
        sum(found.values()).backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
        model.zero_grad()
    for output, size in zip(model.eval()(random_batch([1, 0])), ((96, 128), (96, 128))):
        found = output["instances"]
        assert len(found) > 0
        assert found.pred_masks.shape == (len(found), *size)
        assert found.pred_masks.dtype == torch.bool


@pytest.mark.parametrize("head", [BLEND, EMBED], ids=["blend", "embed"])
def test_steps_lower_the_mask_loss_also_under_autocast(head):
    model = tiny_model("MaskRCNN", *head)
    optimizer = torch.optim.AdamW(model.roi_heads.mask_head.parameters(), lr=2e-4)
    batch, history = random_batch([2, 1]), []
    with EventStorage():
        for step in range(6):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=step % 2 == 1):
                loss = model(copy.deepcopy(batch))["loss_mask"]
            assert loss.dtype == torch.float32
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            history.append(float(loss.detach()))
    assert all(map(math.isfinite, history))
    assert history[-1] < history[0]


@pytest.mark.parametrize("head", [BLEND, EMBED], ids=["blend", "embed"])
def test_default_predictor(head):
    cfg = tiny_config("MaskRCNN", *head, "INPUT.MIN_SIZE_TEST", 64)
    found = DefaultPredictor(cfg)(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))["instances"]
    assert len(found) > 0
    assert found.pred_masks.shape == (len(found), 50, 70)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 1.0
    found = DefaultPredictor(cfg)(np.zeros((50, 70, 3), np.uint8))["instances"]
    assert found.pred_masks.shape == (0, 50, 70)


def test_fcos_takes_the_classes_of_the_roi_heads():
    cfg = tiny_config("MaskRCNN", *BLEND, *FCOS, "MODEL.FCOS.YIELD_BOX_FEATURES", True, num_classes=5)
    cfg.MODEL.FCOS.NUM_CLASSES = 80
    cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT = False
    model = build_model(cfg)
    assert model.proposal_generator.head.class_logits.out_channels == 5
    with EventStorage():
        assert torch.isfinite(sum(model(random_batch([2, 1], num_classes=5)).values()))


class Detectron2Trainer(DefaultTrainer):
    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return COCOEvaluator(dataset_name, output_dir=cfg.OUTPUT_DIR)


@pytest.mark.parametrize("head", [BLEND, EMBED], ids=["blend", "embed"])
def test_detectron2s_own_trainer_and_evaluator(tmp_path, head):
    json_file = make_shapes(tmp_path, "train", 2, seed=1)
    name = f"two_shapes_{head[1]}"
    register_coco(name, json_file, tmp_path / "images")
    cfg = tiny_config(
        "MaskRCNN",
        *head,
        "DATASETS.TRAIN", (name,),
        "DATASETS.TEST", (name,),
        "DATALOADER.NUM_WORKERS", 0,
        "INPUT.MASK_FORMAT", "bitmask",
        "INPUT.MIN_SIZE_TRAIN", (96,),
        "INPUT.MIN_SIZE_TEST", 96,
        "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", 1,
        "OUTPUT_DIR", str(tmp_path),
        num_classes=6,
    )  # fmt: skip
    trainer = Detectron2Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    recorded = {key: value for key, (value, _) in trainer.storage.latest().items()}
    assert recorded["loss_mask"] > 0
    assert 0 <= recorded["segm/AP"] <= 100
    detections = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert detections
    assert all("segmentation" in x for x in detections)


def proposals_of(counts, num_classes=3):
    """Proposals close to the ground truth."""
    instances = [x["instances"] for x in random_batch(counts, num_classes=num_classes)]
    for x in instances:
        x.proposal_boxes = Boxes(x.gt_boxes.tensor + torch.tensor([3.0, -2.0, 5.0, 1.0]))
    return instances


def detections_at(proposals):
    return [Instances(x.image_size, pred_boxes=x.proposal_boxes, pred_classes=x.gt_classes) for x in proposals]


@pytest.mark.parametrize(("interpolation", "convs"), [("bilinear", 0), ("nearest", 0), ("bilinear", 2)])
def test_blending_by_hand(interpolation, convs):
    """Attention from the pooled box, basis by basis and cell by cell; Mask R-CNN's loss."""
    torch.manual_seed(0)
    cfg = tiny_config(
        "MaskRCNN",
        *BLEND,
        "MODEL.BASIS_MODULE.IN_FEATURES", ["p3"],
        "MODEL.BLENDMASK.ATTN_SIZE", 5,
        "MODEL.BLENDMASK.BOTTOM_RESOLUTION", 12,
        "MODEL.BLENDMASK.TOP_INTERP", interpolation,
        "MODEL.BLEND_MASK_HEAD.ATTN_CONVS", convs,
        "MODEL.BLENDMASK.INSTANCE_LOSS_WEIGHT", 0.5,
    )  # fmt: skip
    head = BlendMaskHead(cfg, SHAPES)
    torch.nn.init.normal_(head.attention.weight, std=0.3)
    features = {"p3": torch.randn(3, 32, 12, 16)}
    proposals = proposals_of([2, 0, 1])
    head.basis_module.eval()
    bases = head.basis_module(features)
    expected = []
    for image, x in enumerate(proposals):
        for box in x.proposal_boxes.tensor:
            roi = torch.cat([torch.tensor([float(image)]), box])[None]
            pooled = roi_align(features["p3"], roi, 5, 1 / 8, sampling_ratio=-1, aligned=True)
            for block in head.tower.blocks if convs else ():
                pooled = F.conv2d(pooled, block.conv.weight, block.conv.bias, padding=1)
                pooled = F.relu(F.group_norm(pooled, 32, block.norm.weight, block.norm.bias))
            attention = F.conv2d(pooled, head.attention.weight, head.attention.bias, padding=1)
            corners = {"align_corners": False} if interpolation == "bilinear" else {}
            attention = F.interpolate(attention, (12, 12), mode=interpolation, **corners)[0]
            crops = roi_align(bases, roi, 12, 1 / 4, sampling_ratio=1, aligned=True)[0]
            logits = torch.zeros(12, 12)
            for i in range(12):
                for j in range(12):
                    weights = attention[:, i, j].exp() / attention[:, i, j].exp().sum()
                    logits[i, j] = sum(w * c for w, c in zip(weights, crops[:, i, j]))
            expected.append(logits)
    expected = torch.stack(expected).detach()
    torch.testing.assert_close(
        head.mask_logits(features, [x.proposal_boxes for x in proposals])[:, 0], expected, rtol=1e-4, atol=1e-5
    )
    targets = [
        x.gt_masks[k].crop_and_resize(x.proposal_boxes.tensor[k : k + 1], 12)[0]
        for x in proposals
        for k in range(len(x))
    ]
    loss = -torch.where(torch.stack(targets), expected.sigmoid(), 1 - expected.sigmoid()).log().mean()
    with EventStorage():
        torch.testing.assert_close(head(features, proposals)["loss_mask"], 0.5 * loss, rtol=1e-4, atol=1e-5)
    found = head.eval()(features, detections_at(proposals))
    torch.testing.assert_close(torch.cat([x.pred_masks for x in found])[:, 0], expected.sigmoid(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("merging", "attention"), [("yolact", (4, 32, 3, 3)), ("fcis", None)])
def test_the_other_ways_of_merging(merging, attention):
    model = tiny_model("MaskRCNN", *BLEND, "MODEL.BLENDMASK.MERGING", merging)
    head = model.roi_heads.mask_head
    assert (head.attention.weight.shape if attention else head.attention) == attention
    with EventStorage():
        sum(model(random_batch([1, 2])).values()).backward()
    assert all(p.grad is not None for p in head.parameters())


def naive_lovasz(logits, labels):
    """Errors from the largest down, each weighted by its increase of the Jaccard loss."""
    errors = 1 - logits * (2 * labels.float() - 1)
    order = errors.argsort(descending=True)
    total, previous, loss = int(labels.sum()), 0.0, 0.0
    for rank, k in enumerate(order.tolist(), start=1):
        hits = int(labels[order[:rank]].sum())
        jaccard = 1 - (total - hits) / (total + rank - hits)
        loss += max(float(errors[k]), 0.0) * (jaccard - previous)
        previous = jaccard
    return loss


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
@pytest.mark.parametrize("fixed", [False, True])
def test_embedding_by_hand(version, fixed):
    """exp(-margin * squared distance) cell by cell, the Lovasz hinge of each box, its mean."""
    torch.manual_seed(0)
    cfg = tiny_config(
        "MaskRCNN",
        *EMBED,
        "MODEL.EMBED_MASK.VERSION", version,
        "MODEL.EMBED_MASK.EMBED_DIM", 6,
        "MODEL.EMBED_MASK.MASK_TH", 0.6,
        "MODEL.EMBED_MASK.FIX_MARGIN", fixed,
        "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 4,
        "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO", 2,
    )  # fmt: skip
    head = EmbedMaskHead(cfg, SHAPES)
    part = head.proposal_head
    if head.position_scale is not None:
        head.position_scale.data += 0.7
    for layer in (part.embedding, part.margin, part.box_margin):
        if layer is not None:
            torch.nn.init.normal_(layer.weight, std=0.1)
    features = {"p3": torch.randn(3, 32, 12, 16)}
    proposals = proposals_of([2, 0, 1])
    pixels = head.pixel_head(features["p3"], head.position_scale).detach()
    assert pixels.shape == (3, 6, 24, 32)
    expected, losses = [], []
    for image, x in enumerate(proposals):
        for k, box in enumerate(x.proposal_boxes.tensor):
            roi = torch.cat([torch.tensor([float(image)]), box])[None]
            tower = part.tower(roi_align(features["p3"], roi, 4, 1 / 8, sampling_ratio=2, aligned=True), 0).flatten()
            x1, y1, x2, y2 = box.tolist()
            tower = tower * 3 / 4
            q = (part.embedding.weight @ tower + part.embedding.bias).detach()
            if version != "v1":
                q[:2] += 1.7 * torch.tensor([(x1 + x2) / 2, (y1 + y2) / 2]) / 100
            if fixed:
                margin = torch.tensor(math.log(2) / 4)
            elif version == "v1":
                half = torch.tensor([x2 - x1, y2 - y1, x2 - x1, y2 - y1]) / 2 / 800
                margin = (part.box_margin.weight @ half + part.box_margin.bias).exp()
            else:
                margin = (part.margin.weight @ tower / 32 + part.margin.bias).exp()
                assert len(margin) == (6 if version == "v3" else 1)
            crops = roi_align(pixels, roi, 8, 1 / 4, sampling_ratio=2, aligned=True)[0]
            target = x.gt_masks[k].crop_and_resize(box[None], 8)[0]
            probability = torch.exp(-(margin.detach()[..., None, None] * (crops - q[:, None, None]) ** 2).sum(0))
            expected.append(probability)
            losses.append(naive_lovasz((probability / (1 - probability)).log().flatten(), target.flatten()))
    loss = head(features, proposals)["loss_mask"]
    torch.testing.assert_close(loss, torch.tensor(0.5 * sum(losses) / 3), rtol=1e-3, atol=1e-4)
    loss.backward()
    assert all(p.grad is not None for p in head.parameters())
    found = head.eval()(features, detections_at(proposals))
    expected = torch.stack(expected) * 0.5 / 0.6
    torch.testing.assert_close(torch.cat([x.pred_masks for x in found])[:, 0], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("head", "opts", "match"),
    [
        (BLEND, ["MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"], "'ROIAlignV2'; BlendMaskHead needs \"\""),
        (BLEND, ["MODEL.BASIS_MODULE.LOSS_ON", True], r"BASIS_MODULE\.LOSS_ON"),
        (BLEND, ["MODEL.BASIS_MODULE.IN_FEATURES", ["p3", "p9"]], r"BASIS_MODULE\.IN_FEATURES names p9"),
        (EMBED, ["MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"], "'ROIAlignV2'; EmbedMaskHead needs \"\""),
        (EMBED, ["MODEL.EMBED_MASK.FPN_STRIDES", [12]], r"EMBED_MASK\.FPN_STRIDES begins with 12"),
        (EMBED, ["MODEL.EMBED_MASK.MASK_TH", 1.0], r"EMBED_MASK\.MASK_TH is 1\.0"),
        (EMBED, ["MODEL.EMBED_MASK.VERSION", "v2", "MODEL.EMBED_MASK.EMBED_DIM", 1], r"EMBED_MASK\.EMBED_DIM is 1"),
        (EMBED, ["MODEL.EMBED_MASK.BOX_TO_MARGIN_SCALE", -1.0], r"BOX_TO_MARGIN_SCALE is -1\.0"),
        (EMBED, ["MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 0], r"ROI_MASK_HEAD\.POOLER_RESOLUTION is 0"),
        (EMBED, ["MODEL.EMBED_MASK.VERSION", "v3", "MODEL.EMBED_MASK.BOX_TO_MARGIN_BLOCK", True], "True in v1 and"),
        (BLEND, ["MODEL.BLENDMASK.POOLER_SCALES", (0.125,)], r"POOLER_SCALES is \(0\.125,\); .* stride 8 .* 0\.25"),
    ],
)
def test_wrong_values_name_the_key(head, opts, match):
    with pytest.raises(ConfigError, match=match):
        tiny_model("MaskRCNN", *head, *opts)
