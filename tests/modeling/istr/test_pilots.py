"""Pilots: queries that start near the objects in training."""

import itertools

import pytest
import torch
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from instseg_d2.config import check_config
from instseg_d2.errors import ConfigError
from instseg_d2.modeling.istr import istr
from instseg_d2.modeling.istr.pilots import make_pilots
from instseg_d2.modeling.istr.targets import Targets
from tests.tiny import random_batch, random_instances, tiny_config, tiny_model

KEY = "MODEL.ISTR."


def pairs_of(pilots, counts):
    """(image, group, place in the group, object of the image) of each pair."""
    size = pilots.boxes.shape[1] // pilots.groups
    images = [image for image, number in enumerate(pilots.pairs) for _ in range(number)]
    for image, row, number in zip(images, pilots.rows.tolist(), pilots.objects.tolist()):
        yield image, row // size, row % size, number - sum(counts[:image])


def test_pilots_start_near_their_objects():
    torch.manual_seed(0)
    counts = (3, 0, 5)
    truth = [x["instances"] for x in random_batch(counts)]
    pilots = make_pilots(truth, 4)
    assert (pilots.groups, pilots.boxes.shape, pilots.pairs) == (4, (3, 20, 4), [12, 0, 20])
    found = list(pairs_of(pilots, counts))
    for image, count in enumerate(counts):
        for group in range(4):
            own = sorted(number for i, g, _, number in found if (i, g) == (image, group))
            assert own == list(range(count))  # each object once
    boxes = pilots.boxes.view(3, 4, 5, 4)
    shifts, factors = [], []
    for image, group, place, number in found:
        a, b = boxes[image, group, place], truth[image].gt_boxes.tensor[number]
        sides = b[2:] - b[:2]
        shifts.append(((a[:2] + a[2:] - b[:2] - b[2:]) / 2 / sides).abs().max())
        factors.append((a[2:] - a[:2]) / sides)
    assert 0.3 < max(shifts) <= 0.4001
    assert torch.stack(factors).min() < 0.75
    assert torch.stack(factors).min() > 0.666
    assert 1.35 < torch.stack(factors).max() < 1.501
    assert (pilots.boxes[..., 2:] > pilots.boxes[..., :2]).all()


def test_crowds_have_no_more_pilots():
    """Of 150 objects, 100 have one pilot, or 33 have three, which are others in each group."""
    crowd = random_instances(150, 64, 64, 3, torch.Generator().manual_seed(0))
    for groups, size in ((1, 100), (3, 33), (100, 1)):
        pilots = make_pilots([crowd, crowd[:1]], groups)
        assert pilots.boxes.shape == (2, groups * size, 4)
        assert pilots.pairs == [groups * size, groups]
        found = list(pairs_of(pilots, (150, 1)))
        assert len(set(found)) == len(found) == groups * (size + 1)
    chosen = [
        {number for i, g, _, number in pairs_of(make_pilots([crowd], 3), (150,)) if g == group} for group in (0, 1)
    ]
    assert chosen[0] != chosen[1]


@pytest.mark.parametrize("method", ["", "PCA"])
@torch.no_grad()
def test_losses_by_a_slow_transcription(method, monkeypatch):
    """Each group as if it were alone, and the losses pair by pair; the other losses are as without pilots."""
    kept = []
    monkeypatch.setattr(istr, "make_pilots", lambda *args: kept.append(make_pilots(*args)) or kept[-1])
    opts = [KEY + "MASK_ENCODING_METHOD", method, KEY + "NUM_HEADS", 2, KEY + "PILOTS", 2]
    model, counts = tiny_model("ISTR", *opts).train(), (3, 1)
    batch = random_batch(counts, 70, 100)
    images, truth = model.preprocess(batch), [x["instances"] for x in batch]
    torch.manual_seed(3)
    losses = model.losses(images, batch)
    (pilots,) = kept
    model.pilots = 0
    plain = model.losses(images, batch)
    assert set(losses) == {*plain, *(name.replace("loss", "loss_pilot") for name in plain)}
    for name, value in plain.items():
        torch.testing.assert_close(losses[name], value)

    torch.manual_seed(3)
    make_pilots(truth, 2)  # draws as many numbers
    features, _, queries = model.initial_state(images)
    drawn, size = pilots.queries(queries), pilots.boxes.shape[1] // 2
    found = model.roi_heads(features, pilots.boxes, drawn, 2)
    for own in (slice(0, size), slice(size, None)):
        alone = model.roi_heads(features, pilots.boxes[:, own], drawn[:, own])
        for a, b in list(zip(found, alone))[: 2 if method else 3]:  # version 2 normalises codes over the batch
            torch.testing.assert_close(a[:, :, own], b, rtol=1e-3, atol=1e-3)
    labels = torch.zeros_like(found.class_logits)
    weight = {"ce": 2, "bbox": 5, "giou": 2, "feat": 1 if method else 2, "dice": 5 if method else 2}
    sums = dict.fromkeys(itertools.product(weight, range(2)), 0.0)
    crops = Targets(truth, model.mask_embedding.size, refined=True)
    limit = torch.tensor([100.0, 70, 100, 70])
    for image, group, place, number in pairs_of(pilots, counts):
        row, k = group * size + place, number + sum(counts[:image])
        gt = truth[image].gt_boxes.tensor[number]
        for head in range(2):
            labels[head, image, row, truth[image].gt_classes[number]] = 1
            box = found.boxes[head, image, row]
            sums["bbox", head] += float(((box - gt) / limit).abs().sum())
            sums["giou", head] += float(generalized_box_iou_loss(box[None], gt[None]))
            window = torch.minimum(box.clamp(min=0), limit) if method else gt
            crop = crops.crop(torch.tensor([[k]]), window[None, None], [0, 1] if image else [1, 0])[0, 0]
            code = found.codes[head, image, row]
            error = (code - model.mask_embedding.encode(crop[None])[0]).abs()
            values = torch.where(error < 1, error**2 / 2, error - 0.5) if method else error**2
            sums["feat", head] += float(values.mean())
            mask = model.mask_embedding.decode(code[None])[0]
            sums["dice", head] += float(1 - 2 * (mask * crop).sum() / ((mask**2).sum() + (crop**2).sum() + 1e-5))
    for head in range(2):
        sums["ce", head] = float(sigmoid_focal_loss(found.class_logits[head], labels[head], 0.25, 2.0).sum())
        suffix = f"_{head}" if method or head == 0 else ""
        for name in weight:
            loss = float(losses[f"loss_pilot_{name}{suffix}"])
            assert loss == pytest.approx(weight[name] * sums[name, head] / 8, rel=2e-3, abs=1e-4), (name, head)


@pytest.mark.parametrize("method", ["", "DCT", "AE"])
def test_a_batch_without_objects(method):
    model = tiny_model("ISTR", KEY + "MASK_ENCODING_METHOD", method, KEY + "PILOTS", 2).train()
    losses = model(random_batch([0, 0]))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert not [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_only_training_has_pilots():
    with_pilots, without = (tiny_model("ISTR", KEY + "PILOTS", count) for count in (3, 0))
    assert "loss_pilot_ce" not in without.train()(random_batch([1]))
    without.load_state_dict(with_pilots.state_dict())
    found, expected = (model.eval()(random_batch([2]))[0]["instances"] for model in (with_pilots, without))
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)


@pytest.mark.parametrize("method", ["DCT", "AE"])
def test_running_statistics_are_those_of_the_queries(method):
    """Inference has no pilots."""
    opts = [KEY + "MASK_ENCODING_METHOD", method, KEY + "NUM_HEADS", 2]
    models = [tiny_model("ISTR", *opts, KEY + "PILOTS", count).train() for count in (2, 0)]
    models[1].load_state_dict(models[0].state_dict())
    before = {name: x.clone() for name, x in models[0].named_buffers()}
    for model in models:
        model(random_batch([3, 2]))
    found, expected = (dict(model.named_buffers()) for model in models)
    assert any(not torch.equal(x, before[name]) for name, x in expected.items())
    for name, x in expected.items():
        torch.testing.assert_close(found[name], x, msg=name)


def test_heads_of_detectron2_have_none():
    cfg = tiny_config("ISTR", KEY + "PILOTS", 1)
    check_config(cfg)
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME = "GeneralizedRCNN", "ISTRHeads"
    with pytest.raises(ConfigError, match=r"MODEL\.ISTR\.PILOTS is 1; ISTRHeads has none: set it to 0"):
        check_config(cfg)
