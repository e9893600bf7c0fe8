"""AssembleMaskHead against a naive loop, and by name in Detectron2's Mask R-CNN."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import roi_align

from instseg_d2.config import get_cfg, load_config
from instseg_d2.errors import ConfigError
from instseg_d2.modeling.instancefcn.mask_head import AssembleMaskHead
from tests.tiny import MASK_RCNN, random_batch, tiny_model

CONFIGS = Path(__file__).parents[3] / "configs" / "MaskRCNN-heads"
HEAD = ["MODEL.ROI_MASK_HEAD.NAME", "AssembleMaskHead", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]


def tiny_mask_rcnn(*opts, num_classes=3):
    return tiny_model("MaskRCNN", *HEAD, *opts, num_classes=num_classes)


def test_head_equals_a_naive_loop():
    """Logits, loss and probabilities from the layers' parameters, box by box and class by class."""
    torch.manual_seed(0)
    head = AssembleMaskHead(
        in_feature="p3", in_channels=6, stride=8, num_classes=2, grid=3, resolution=7, sampling_ratio=2,
        num_convs=1, conv_dim=8, loss_weight=0.5,
    )  # fmt: skip
    features = {"p2": torch.randn(2, 6, 24, 32), "p3": torch.randn(2, 6, 12, 16)}
    maps = head.score_maps(torch.relu(head.tower[0](features["p3"]))).detach()
    proposals = []
    for sample in random_batch([2, 3], num_classes=2):
        instances = sample["instances"]
        instances.proposal_boxes = instances.gt_boxes
        proposals.append(instances)
    total, count = 0.0, 0
    for image, instances in enumerate(proposals):
        for k in range(len(instances)):
            box = instances.gt_boxes.tensor[k : k + 1]
            roi = torch.cat([torch.tensor([[float(image)]]), box], dim=1)
            crops = roi_align(maps, roi, 7, 1 / 8, sampling_ratio=2, aligned=True)[0]
            target = instances.gt_masks[k].crop_and_resize(box, 7)[0]
            for i in range(7):
                for j in range(7):
                    part = (i * 3 // 7) * 3 + j * 3 // 7
                    probability = crops[part * 2 + int(instances.gt_classes[k]), i, j].sigmoid()
                    total -= (probability if target[i, j] else 1 - probability).log()
                    count += 1
    with EventStorage():
        loss = head(features, proposals)["loss_mask"]
    torch.testing.assert_close(loss, 0.5 * total / count, rtol=1e-4, atol=1e-5)

    found = []
    for instances in proposals:
        result = Instances(instances.image_size, pred_boxes=instances.gt_boxes, pred_classes=instances.gt_classes)
        found.append(result)
    logits = head.mask_logits(features, [x.pred_boxes for x in found])
    assert head.eval()(features, found) is found
    masks = torch.cat([x.pred_masks for x in found])
    classes = torch.cat([x.pred_classes for x in found])
    assert masks.shape == (5, 1, 7, 7)
    assert torch.equal(masks[:, 0], logits[torch.arange(5), classes].sigmoid())


@pytest.mark.parametrize("agnostic", [True, False])
def test_trains_by_name_in_mask_rcnn(agnostic):
    model = tiny_mask_rcnn("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic)
    assert model.roi_heads.mask_head.score_maps.out_channels == 25 * (1 if agnostic else 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
    batch = random_batch([2, 0])
    history = []
    with EventStorage():
        for _ in range(3):
            losses = model(copy.deepcopy(batch))
            assert set(losses) == {"loss_cls", "loss_box_reg", "loss_mask", "loss_rpn_cls", "loss_rpn_loc"}
            assert all(torch.isfinite(loss) for loss in losses.values())
            optimizer.zero_grad()
            sum(losses.values()).backward()
            assert all(p.grad is not None for p in model.roi_heads.mask_head.parameters())
            optimizer.step()
            history.append(float(losses["loss_mask"].detach()))
    assert history[-1] < history[0]
    for output in model.eval()(random_batch([1, 0])):
        found = output["instances"]
        assert len(found) > 0
        assert found.pred_masks.shape == (len(found), 96, 128)
        assert found.pred_masks.dtype == torch.bool


def test_images_without_objects():
    model = tiny_mask_rcnn()
    with EventStorage():
        losses = model(random_batch([0, 0]))
    assert losses["loss_mask"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.roi_heads.mask_head.parameters())


def test_nothing_found():
    model = tiny_mask_rcnn("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.0).eval()
    (output,) = model(random_batch([1]))
    assert output["instances"].pred_masks.shape == (0, 96, 128)


@pytest.mark.parametrize("num_classes", [1, 2, 4, 7])
def test_class_counts(num_classes):
    model = tiny_mask_rcnn(num_classes=num_classes)
    assert model.roi_heads.mask_head.score_maps.out_channels == 25 * num_classes
    with EventStorage():
        losses = model(random_batch([2], num_classes=num_classes))
    assert torch.isfinite(losses["loss_mask"])


def test_autocast_loss_is_finite_float32():
    model = tiny_mask_rcnn()
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.roi_heads.mask_head(
            {"p3": torch.randn(1, 32, 12, 16)},
            [
                Instances(
                    (96, 128),
                    **{
                        **random_batch([2])[0]["instances"].get_fields(),
                        "proposal_boxes": Boxes(torch.tensor([[0.0, 0, 40, 40]] * 2)),
                    },
                )
            ],
        )["loss_mask"]
    assert loss.dtype == torch.float32
    assert torch.isfinite(loss)


@pytest.mark.parametrize(
    ("opts", "match"),
    [
        (["MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIAlignV2"], r"ROI_MASK_HEAD\.POOLER_TYPE"),
        (["MODEL.ASSEMBLE_MASK_HEAD.IN_FEATURE", "p9"], r"ASSEMBLE_MASK_HEAD\.IN_FEATURE is 'p9'.* p2, p3, p4, p5"),
        (["MODEL.ASSEMBLE_MASK_HEAD.GRID", 0], r"ASSEMBLE_MASK_HEAD\.GRID"),
        (["MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION", 0], r"ROI_MASK_HEAD\.POOLER_RESOLUTION"),
    ],
)
def test_wrong_values_name_the_key(opts, match):
    with pytest.raises(ConfigError, match=match):
        tiny_mask_rcnn(*opts)


def test_base_recipe_is_detectron2s():
    ours = load_config(str(CONFIGS / "Base-mask_rcnn_R_50_FPN_1x.yaml"))
    theirs = get_cfg()
    theirs.merge_from_file(MASK_RCNN)
    assert ours == theirs
