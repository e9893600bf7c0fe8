"""Costs, matching, targets and mask losses of ISTR by hand and by brute force."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances, PolygonMasks

from instseg_d2.modeling.istr.refinement import Predictions
from instseg_d2.modeling.istr.targets import Targets, class_cost, code_cost
from tests.tiny import random_batch, tiny_model

METHOD = "MODEL.ISTR.MASK_ENCODING_METHOD"


def test_class_cost():
    logits = torch.tensor([[0.3, -2.0], [4.0, 0.0]])
    found = class_cost(logits, torch.tensor([1, 0, 1]), 0.25, 2.0)
    for i, k in itertools.product(range(2), range(3)):
        p = 1 / (1 + math.exp(-float(logits[i, (1, 0, 1)[k]])))
        expected = 0.25 * (1 - p) ** 2 * -math.log(p + 1e-8) - 0.75 * p**2 * -math.log(1 - p + 1e-8)
        assert math.isclose(float(found[i, k]), expected, rel_tol=1e-4)


def test_code_costs():
    torch.manual_seed(0)
    codes, target = torch.randn(2, 3, 5), torch.randn(1, 4, 5)
    cosine, l1 = code_cost(codes, target, "cosine"), code_cost(codes, target, "l1")
    for h, i, k in itertools.product(range(2), range(3), range(4)):
        a, b = codes[h, i], target[0, k]
        torch.testing.assert_close(cosine[h, i, k], -(a @ b / (a.norm() * b.norm()) + 1) / 2)
        torch.testing.assert_close(l1[h, i, k], (a - b).abs().mean())
    assert code_cost(torch.zeros(1, 1, 5), target, "cosine").tolist() == [[[-0.5] * 4]]


def random_predictions(model, num_images, num_queries, size=96):
    heads, classes = model.criterion.num_heads, model.roi_heads.heads[0].class_logits.out_features
    corner = torch.rand(heads, num_images, num_queries, 2) * size * 0.6
    boxes = torch.cat([corner, corner + 4 + torch.rand(heads, num_images, num_queries, 2) * size], dim=-1)
    logits = torch.randn(heads, num_images, num_queries, classes)
    codes = torch.randn(heads, num_images, num_queries, model.mask_embedding.dim)
    return Predictions(*(x.requires_grad_() for x in (logits, boxes, codes)), None)


def giou_of(a, b):
    area = lambda x: (x[2] - x[0]) * (x[3] - x[1])  # noqa: E731
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(wide, 0) * max(high, 0)
    union = area(a) + area(b) - inter
    hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
    return inter / union - (hull - union) / hull


@pytest.mark.parametrize("cost", ["cosine", "l1", "dice"])
def test_matching_tries_all(cost):
    model = tiny_model("ISTR", "MODEL.ISTR.NUM_HEADS", 2, "MODEL.ISTR.MASK_COST", cost)
    torch.manual_seed(1)
    counts = [2, 0, 6]
    predictions = random_predictions(model, 3, 4)
    instances = [x["instances"] for x in random_batch(counts)]
    targets = Targets(instances, 28, refined=False)
    rows, objects, pairs = model.criterion.matcher(predictions, targets, model.mask_embedding)
    assert (pairs, rows.shape, objects.shape) == ([2, 0, 4], (2, 6), (2, 6))
    codes = model.mask_embedding.encode(targets.crops)
    masks = model.mask_embedding.decode(predictions.codes.detach().flatten(0, 2)).view(2, 3, 4, 28, 28)
    for head, image in itertools.product(range(2), (0, 2)):
        first = sum(counts[:image])
        matrix = torch.zeros(4, counts[image])
        for i, k in itertools.product(range(4), range(counts[image])):
            box, gt = predictions.boxes[head, image, i].tolist(), targets.boxes[first + k].tolist()
            p = predictions.class_logits[head, image, i, targets.classes[first + k]].sigmoid()
            value = 2 * (0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log())
            value += 5 * sum(abs(a - b) / s for a, b, s in zip(box, gt, (128, 96, 128, 96))) - 2 * giou_of(box, gt)
            code, wanted = predictions.codes[head, image, i], codes[first + k]
            if cost == "cosine":
                value -= 2 * (F.cosine_similarity(code, wanted, dim=0) + 1) / 2
            elif cost == "l1":
                value += 2 * (code - wanted).abs().mean()
            else:
                x, y = masks[head, image, i], targets.crops[first + k]
                value -= 2 * 2 * (x * y).sum() / ((x**2).sum() + (y**2).sum() + 1e-5)
            matrix[i, k] = value.detach()
        tall = matrix if 4 >= counts[image] else matrix.T
        best = min(
            sum(float(tall[i, k]) for k, i in enumerate(choice))
            for choice in itertools.permutations(range(tall.shape[0]), tall.shape[1])
        )
        mine = slice(0, 2) if image == 0 else slice(2, 6)
        total = matrix[rows[head, mine], objects[head, mine] - first].sum()
        assert math.isclose(float(total), best, rel_tol=1e-4, abs_tol=1e-4)


def test_targets_by_hand():
    """Crops of polygons and bitmasks inside their own boxes and inside others."""
    instances = Instances((40, 40))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 0, 16, 16], [20, 20, 36, 36]]))
    instances.gt_classes = torch.tensor([0, 1])
    instances.gt_masks = PolygonMasks([[[0.0, 0, 8, 0, 8, 16, 0, 16]], [[20.0, 20, 36, 20, 36, 36, 20, 36]]])
    for refined in (False, True):
        targets = Targets([instances], 8, refined)
        assert targets.crops[0].tolist() == [[1.0] * 4 + [0.0] * 4] * 8
        assert targets.crops[1].min() == 1
    boxes = torch.tensor([[[0.0, 0, 8, 16], [28, 20, 44, 36], [-8, -8, 8, 8]]])
    crops = targets.crop(torch.tensor([[0, 1, 0]]), boxes, [3])
    assert crops.shape == (1, 3, 8, 8)
    assert crops[0, 0].min() == 1
    # Clamped to the image: 28..40 of which the object has 28..36, two thirds of eight cells.
    assert crops[0, 1].sum(1).tolist() == [5.0] * 8
    assert crops[0, 2].min() == 1


@pytest.mark.parametrize(("method", "weights"), [("", (2.0, 2.0)), ("PCA", (1.0, 5.0)), ("DCT", (1.0, 5.0))])
def test_mask_losses_by_hand(method, weights):
    """The codes' error and dice on the matched pairs, pair by pair."""
    model = tiny_model("ISTR", METHOD, method, "MODEL.ISTR.NUM_HEADS", 1)
    embedding, criterion = model.mask_embedding, model.criterion
    torch.manual_seed(2)
    predictions = random_predictions(model, 2, 5)
    instances = [x["instances"] for x in random_batch([2, 1])]
    targets = Targets(instances, embedding.size, refined=True)
    rows, objects, _ = criterion.matcher(predictions, targets, embedding)
    losses = criterion(predictions, instances, embedding)
    feat, dice = 0.0, 0.0
    for row, k in zip(rows[0].tolist(), objects[0].tolist()):
        image = int(targets.image[k])
        box = predictions.boxes[0, image, row] if method else targets.boxes[k]
        box = torch.minimum(box.clamp(min=0), torch.tensor([128.0, 96, 128, 96]))
        crop = targets.crop(torch.tensor([[k]]), box[None, None], [0, 1] if image else [1, 0])[0, 0]
        code = predictions.codes[0, image, row]
        for a, b in zip(code.detach(), embedding.encode(crop[None])[0]):
            error = abs(float(a - b))
            feat += error**2 if not method else (error**2 / 2 if error < 1 else error - 0.5)
        mask = embedding.decode(code[None])[0]
        dice += float(1 - 2 * (mask * crop).sum() / ((mask**2).sum() + (crop**2).sum() + 1e-5))
    suffix = "_0" if method else ""
    assert math.isclose(float(losses[f"loss_feat{suffix}"]), weights[0] * feat / 12 / 3, rel_tol=1e-4)
    assert math.isclose(float(losses[f"loss_dice{suffix}"]), weights[1] * dice / 3, rel_tol=1e-4)
