"""FCOS losses and their gradients against their equations, one location at a time."""

import math

import pytest
import torch

from tests.tiny import random_batch, tiny_model

ALPHA, GAMMA = 0.25, 2.0


def naive_iou(pred, target):
    """(inter + 1) / (union + 1) and GIoU of two boxes around one location."""
    area = (pred[0] + pred[2]) * (pred[1] + pred[3])
    target_area = (target[0] + target[2]) * (target[1] + target[3])
    inter = (min(pred[0], target[0]) + min(pred[2], target[2])) * (min(pred[1], target[1]) + min(pred[3], target[3]))
    hull = (max(pred[0], target[0]) + max(pred[2], target[2])) * (max(pred[1], target[1]) + max(pred[3], target[3]))
    union = area + target_area - inter
    iou = (inter + 1) / (union + 1)
    return iou, iou - (hull - union) / hull


def naive_losses(class_logits, ltrb, quality_logits, positives, classes, box_loss, box_quality, normalizer_cls):
    focal = class_logits.new_zeros(())
    labels = {int(row): int(classes[obj]) for row, obj in zip(positives.rows, positives.objects)}
    for row, logits in enumerate(class_logits):
        for label, x in enumerate(logits):
            p = torch.sigmoid(x)
            if labels.get(row) == label:
                focal = focal - ALPHA * (1 - p) ** GAMMA * torch.log(p)
            else:
                focal = focal - (1 - ALPHA) * p**GAMMA * torch.log(1 - p)
    box, quality, weights = [], [], []
    for row, target, ctr in zip(positives.rows, positives.ltrb, positives.centerness):
        iou, giou = naive_iou(ltrb[row], target)
        box.append({"giou": 1 - giou, "iou": -torch.log(iou), "linear_iou": 1 - iou}[box_loss])
        goal = ctr if box_quality == "ctrness" else iou.detach()
        p = torch.sigmoid(quality_logits[row])
        quality.append(-goal * torch.log(p) - (1 - goal) * torch.log(1 - p))
        weights.append(ctr if box_quality == "ctrness" else torch.ones_like(ctr))
    count = max(len(box), 1)
    norm = max(float(sum(weights)), 1e-6) if box_quality == "ctrness" else count
    divisor = {"fg": count, "moving_fg": 0.9 * 100 + 0.1 * count, "all": len(class_logits)}[normalizer_cls]
    return (
        focal / divisor,
        sum(w * b for w, b in zip(weights, box)) / norm,
        sum(quality) / count,
    )


@pytest.mark.parametrize("box_loss", ["giou", "iou", "linear_iou"])
@pytest.mark.parametrize("box_quality", ["ctrness", "iou"])
@pytest.mark.parametrize("normalizer_cls", ["fg", "moving_fg", "all"])
def test_losses_and_gradients(box_loss, box_quality, normalizer_cls):
    model = tiny_model(
        "BlendMask",
        "MODEL.FCOS.LOC_LOSS_TYPE", box_loss,
        "MODEL.FCOS.BOX_QUALITY", box_quality,
        "MODEL.FCOS.LOSS_NORMALIZER_CLS", normalizer_cls,
        "MODEL.FCOS.LOSS_WEIGHT_CLS", 1.5,
    )  # fmt: skip
    fcos = model.proposal_generator
    batch = random_batch([2, 0, 3], 64, 64)
    instances = model.gt_instances(batch)
    with torch.no_grad():
        outputs = fcos.outputs(model.backbone(model.preprocess(batch).tensor))
    generator = torch.Generator().manual_seed(1)
    leaves = []
    for name in ("class_logits", "ltrb", "quality_logits"):
        leaf = torch.randn(getattr(outputs, name).shape, generator=generator, dtype=torch.float32)
        leaf = (leaf.abs() * 3 if name == "ltrb" else leaf).requires_grad_()
        setattr(outputs, name, leaf)
        leaves.append(leaf)
    positives = fcos.match(outputs, instances)
    assert len(positives.rows) > 10
    losses, weights, normalizer = fcos.losses(outputs, positives, instances)
    classes = torch.cat([x.gt_classes for x in instances])
    expected = naive_losses(*leaves, positives, classes, box_loss, box_quality, normalizer_cls)
    found = (
        losses["loss_fcos_cls"],
        losses["loss_fcos_loc"],
        losses["loss_fcos_" + ("ctr" if box_quality == "ctrness" else "iou")],
    )
    for name, a, b, factor in zip(("cls", "loc", "quality"), found, expected, (1.5, 1, 1)):
        torch.testing.assert_close(a, b * factor, rtol=1e-4, atol=1e-5, msg=name)
    gradients = torch.autograd.grad(sum(found), leaves)
    wanted = torch.autograd.grad(1.5 * expected[0] + expected[1] + expected[2], leaves)
    for a, b in zip(gradients, wanted):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    if box_quality == "iou":
        assert torch.equal(weights, torch.ones_like(weights))
        assert normalizer == len(positives.rows)


def test_moving_normalizer_survives_a_checkpoint():
    model = tiny_model("BlendMask", "MODEL.FCOS.LOSS_NORMALIZER_CLS", "moving_fg")
    model(random_batch([4, 4]))
    value = model.proposal_generator.moving_num_positives.clone()
    assert value != 100
    other = tiny_model("BlendMask", "MODEL.FCOS.LOSS_NORMALIZER_CLS", "moving_fg", seed=1)
    other.load_state_dict(model.state_dict())
    assert other.proposal_generator.moving_num_positives == value


def test_initial_bias_is_the_prior():
    model = tiny_model("BlendMask")
    bias = model.proposal_generator.head.class_logits.bias
    assert torch.allclose(torch.sigmoid(bias), torch.tensor(0.01))
    assert math.isclose(model.proposal_generator.head.class_logits.weight.std().item(), 0.01, rel_tol=0.1)


@pytest.mark.parametrize(
    ("key", "value"), [("LOC_LOSS_TYPE", "diou"), ("BOX_QUALITY", "x"), ("LOSS_NORMALIZER_CLS", "y")]
)
def test_unknown_choices_name_the_key(key, value):
    with pytest.raises(ValueError, match=f"MODEL.FCOS.{key}"):
        tiny_model("BlendMask", f"MODEL.FCOS.{key}", value)
