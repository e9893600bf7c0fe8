"""Assembling inside boxes against RoIAlign of whole boxes, and the mask head by name in Detectron2's Mask R-CNN."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2 import model_zoo
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torchvision.ops import roi_align

from instseg_d2.config import get_cfg, load_config
from instseg_d2.errors import ConfigError
from instseg_d2.layers import assemble_boxes, crop_nearest
from instseg_d2.modeling.instancefcn.mask_head import AssembleMaskHead
from tests.tiny import random_batch
from tests.tiny_rcnn import ZOO, tiny_rcnn

CONFIGS = Path(__file__).parents[3] / "configs" / "MaskRCNN-heads"
HEAD = ["MODEL.ROI_MASK_HEAD.NAME", "AssembleMaskHead", "MODEL.ROI_MASK_HEAD.POOLER_TYPE", ""]


def tiny_mask_rcnn(*opts, num_classes=3):
    return tiny_rcnn(*HEAD, *opts, num_classes=num_classes)


def boxes_in_images(count=7, images=2, seed=0):
    """Boxes from below a cell to beyond the map of 20 x 30 cells of 8 pixels."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([240.0, 160.0]) - 20
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 150], dim=1)
    boxes[0, 2:] = boxes[0, :2] + 3.0
    boxes[1] = torch.tensor([-500.0, -500.0, -300.0, -400.0])
    return boxes, torch.randint(images, (count,), generator=generator)


def naive_assemble(maps, boxes, batch_index, grid, resolution, crop):
    """Crops all maps in the whole box, then picks the map of each cell."""
    channels = maps.shape[1] // grid**2
    crops = crop(maps, torch.cat([batch_index[:, None].to(boxes), boxes], dim=1))
    out = torch.zeros(len(boxes), channels, resolution, resolution, dtype=crops.dtype)
    for i in range(resolution):
        for j in range(resolution):
            part = (i * grid // resolution) * grid + j * grid // resolution
            out[:, :, i, j] = crops[:, part * channels : (part + 1) * channels, i, j]
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [1, 2])
@pytest.mark.parametrize(("grid", "resolution", "channels"), [(1, 3, 1), (3, 9, 1), (5, 28, 1), (5, 14, 3), (4, 2, 1)])
def test_assembles_what_roi_align_of_the_box_reads(aligned, sampling_ratio, grid, resolution, channels):
    maps = torch.randn(2, grid**2 * channels, 20, 30, generator=torch.Generator().manual_seed(1)).requires_grad_()
    boxes, index = boxes_in_images()

    def crop(maps, rois):
        return roi_align(maps, rois, resolution, 0.125, sampling_ratio=sampling_ratio, aligned=aligned)

    expected = naive_assemble(maps, boxes, index, grid, resolution, crop)
    actual = assemble_boxes(maps, boxes, index, grid, resolution, 0.125, sampling_ratio=sampling_ratio, aligned=aligned)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    grad = torch.randn_like(actual)
    (expected_grad,) = torch.autograd.grad(expected, maps, grad)
    (actual_grad,) = torch.autograd.grad(actual, maps, grad)
    torch.testing.assert_close(actual_grad, expected_grad, rtol=0, atol=1e-3)


def test_adaptive_sampling():
    """Cells of 1.3 x 1.7 map cells are sampled at 2 x 2 points, in a part as in the box."""
    maps = torch.randn(1, 9, 40, 40)
    box = torch.tensor([[20.0, 30.0, 20 + 8 * 1.3 * 8, 30 + 8 * 1.7 * 8]])
    expected = naive_assemble(maps, box, torch.zeros(1), 3, 8, lambda m, r: roi_align(m, r, 8, 0.125, 0, True))
    actual = assemble_boxes(maps, box, torch.zeros(1, dtype=torch.int64), 3, 8, 0.125)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("resolution", [4, 7])
def test_nearest(resolution):
    maps = torch.randn(2, 9, 20, 30)
    boxes, index = boxes_in_images(seed=2)
    expected = naive_assemble(
        maps, boxes, index, 3, resolution, lambda m, r: crop_nearest(m, boxes, index, resolution, 0.125)
    )
    actual = assemble_boxes(maps, boxes, index, 3, resolution, 0.125, interpolation="nearest")
    assert (actual != expected).float().mean() < 0.01  # a centre between two cells may round either way


def test_no_boxes_and_no_images():
    maps = torch.randn(2, 50, 4, 4, requires_grad=True)
    out = assemble_boxes(maps, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 5, 14, 0.125)
    assert out.shape == (0, 2, 14, 14)
    assert not torch.autograd.grad(out.sum(), maps)[0].any()
    assert assemble_boxes(maps[:0], torch.zeros(0, 4), torch.zeros(0).long(), 5, 14, 0.125).shape == (0, 2, 14, 14)


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
    model = tiny_mask_rcnn("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 1.1).eval()
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
    theirs.merge_from_file(model_zoo.get_config_file(ZOO))
    assert ours == theirs
