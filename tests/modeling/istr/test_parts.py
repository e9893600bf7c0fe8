"""The pieces of ISTR against loops over the paper's equations and numbers worked out by hand."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances, PolygonMasks
from torch import nn

from instseg_d2.errors import ConfigError
from instseg_d2.modeling.istr.head import (
    DynamicAttention,
    MultiHeadRoIAttention,
    RefinementHead,
    RoIMaskBranch,
    VectorMaskBranch,
    init_heads,
)
from instseg_d2.modeling.istr.refinement import Predictions
from instseg_d2.modeling.istr.targets import Targets, class_cost, code_cost
from tests.tiny import random_batch, tiny_config, tiny_model

METHOD = "MODEL.ISTR.MASK_ENCODING_METHOD"


def test_dynamic_attention():
    torch.manual_seed(0)
    layer = DynamicAttention(6, 3, cells=4)
    for norm in (layer.norm1, layer.norm2, layer.norm3):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    queries, rois = torch.randn(5, 6), torch.randn(5, 4, 6)
    found = layer(queries, rois)
    for q, roi, result in zip(queries, rois, found):
        numbers = layer.dynamic_layer.weight @ q + layer.dynamic_layer.bias
        first = torch.stack([numbers[i * 3 : i * 3 + 3] for i in range(6)])
        second = torch.stack([numbers[18 + i * 6 : 18 + i * 6 + 6] for i in range(3)])
        flat = []
        for cell in roi:  # location-major
            x = F.elu(layer.norm1(cell @ first))
            flat.append(F.elu(layer.norm2(x @ second)))
        torch.testing.assert_close(result, F.elu(layer.norm3(layer.out_layer(torch.cat(flat)))))


def naive_attention(layer, queries, keys):
    """Multi-head attention of (n, C) to (m, C), one head and query at a time."""
    wq, wk, wv = layer.in_proj_weight.chunk(3)
    bq, bk, bv = layer.in_proj_bias.chunk(3)
    q, k, v = queries @ wq.T + bq, keys @ wk.T + bk, keys @ wv.T + bv
    width = q.shape[1] // layer.num_heads
    rows = []
    for row in q:
        parts = []
        for h in range(layer.num_heads):
            s = slice(h * width, (h + 1) * width)
            parts.append(torch.softmax(k[:, s] @ row[s] / math.sqrt(width), 0) @ v[:, s])
        rows.append(torch.cat(parts) @ layer.out_proj.weight.T + layer.out_proj.bias)
    return torch.stack(rows)


def test_multi_head_roi_attention():
    torch.manual_seed(0)
    layer = MultiHeadRoIAttention(8, 2)
    queries, rois = torch.randn(5, 8), torch.randn(5, 4, 8)
    expected = torch.cat([naive_attention(layer.attention, q[None], roi) for q, roi in zip(queries, rois)])
    torch.testing.assert_close(layer(queries, rois), expected)


@pytest.mark.parametrize("training", [True, False])
def test_one_head(training):
    torch.manual_seed(0)
    head = RefinementHead(
        roi_attention=MultiHeadRoIAttention(8, 2),
        mask_branch=VectorMaskBranch(8, 2, 5),
        channels=8,
        num_heads=2,
        feedforward=12,
        num_classes=4,
        num_class_layers=1,
        num_box_layers=2,
    ).train(training)
    for norm in (m for m in head.modules() if isinstance(m, nn.LayerNorm)):
        nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    queries, rois = torch.randn(2, 3, 8), torch.randn(6, 4, 8)
    with torch.set_grad_enabled(training):
        found = head(queries, rois)
        x = torch.cat([head.norm1(q + naive_attention(head.self_attention, q, q)) for q in queries])
        x = head.norm2(x + head.roi_attention(x, rois))
        x = head.norm3(x + head.linear2(F.elu(head.linear1(x))))
        torch.testing.assert_close(found.flatten(0, 1), x)
        (fc, norm, _), (box1, n1, _, box2, n2, _) = head.class_branch, head.box_branch
        torch.testing.assert_close(head.classify(found).flatten(0, 1), head.class_logits(F.elu(norm(fc(x)))))
        torch.testing.assert_close(head.deltas(x), head.box_deltas(F.elu(n2(box2(F.elu(n1(box1(x))))))))
        fc1, n1, _, fc2, n2, _ = head.mask_branch.layers
        codes, feature = head.mask_branch(x)
        torch.testing.assert_close(codes, head.mask_branch.codes(F.elu(n2(fc2(F.elu(n1(fc1(x))))))))
    assert feature is None
    assert fc.bias is None


def test_roi_mask_branch():
    torch.manual_seed(0)
    branch = RoIMaskBranch(6, 5, decoder_channels=4).eval()
    for norm in (m for m in branch.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2)
    rois = torch.randn(3, 6, 28, 28)
    codes, feature = branch(None, rois)
    conv1, bn1, _, conv2, bn2, _, conv3 = branch.layers
    x = F.conv2d(rois, conv1.weight, conv1.bias, stride=2, padding=1)
    x = F.elu((x - bn1.running_mean[:, None, None]) / (bn1.running_var + 1e-5).sqrt()[:, None, None])
    assert x.shape == (3, 6, 14, 14)
    x = F.elu(bn2(F.conv2d(x, conv2.weight, conv2.bias, stride=2, padding=1)))
    assert x.shape == (3, 6, 7, 7)
    torch.testing.assert_close(codes, torch.einsum("ncyx,dcyx->nd", x, conv3.weight) + conv3.bias, rtol=1e-4, atol=1e-5)
    y = rois
    for i in range(0, 12, 3):
        y = F.elu(branch.decoder_feature[i + 1](branch.decoder_feature[i](y)))
    torch.testing.assert_close(feature, y)
    assert [m.out_channels for m in branch.decoder_feature if isinstance(m, nn.Conv2d)] == [8, 8, 4, 4]


@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 7, 80])
@pytest.mark.parametrize("method", ["", "AE"])
def test_initial_weights(num_classes, method):
    """Whatever the class count, the prior touches the class biases alone and no weight is constant."""
    model = tiny_model("ISTR", METHOD, method, num_classes=num_classes)
    init_heads(model.roi_heads.heads, 0.01)
    for name, parameter in model.roi_heads.named_parameters():
        if parameter.dim() > 1:
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(parameter)
            bound = math.sqrt(6 / (fan_in + fan_out))
            assert parameter.abs().max() <= bound, name
            assert parameter.std() > 0.4 * bound, name
        elif name.endswith("class_logits.bias"):
            torch.testing.assert_close(parameter, torch.full((num_classes,), -math.log(99)))
        else:
            assert parameter.abs().max() <= 1, name
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            assert parameter.std() > 0, name


def test_start_of_the_refinement():
    model = tiny_model("ISTR")
    batch = random_batch([0], 70, 100) + random_batch([0], 96, 64)
    images = model.preprocess(batch)
    assert images.tensor.shape[-2:] == (96, 128)
    features, boxes, queries = model.start(images)
    for image, (height, width) in enumerate([(70, 100), (96, 64)]):
        for n, (x, y, w, h) in enumerate(model.initial_boxes.weight.tolist()):
            wanted = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            torch.testing.assert_close(boxes[image, n], torch.tensor(wanted), rtol=1e-4, atol=1e-3)
            mean = sum(features[name][image].flatten(1).mean(1) for name in ("p2", "p3", "p4", "p5"))
            torch.testing.assert_close(queries[image, n], mean + model.query_embedding.weight[n])
    assert boxes.requires_grad


def test_boxes_start_as_the_whole_image():
    model = build_model(tiny_config("ISTR"))
    images = model.preprocess(random_batch([0], 70, 100))
    _, boxes, _ = model.start(images)
    assert boxes.tolist() == [[[0.0, 0.0, 100.0, 70.0]] * 10]


def test_boxes_through_the_heads():
    """Weights 2, 2, 1, 1 and the clamp by hand; a gradient between heads for the queries, none for the boxes."""
    model = tiny_model("ISTR", "MODEL.ISTR.NUM_HEADS", 2)
    images = model.preprocess(random_batch([0]))
    features, boxes, queries = model.start(images)
    maps = model.roi_heads.maps(features)
    rows = model.roi_heads.pooler.rows(maps)
    for head, bias in zip(model.roi_heads.heads, ([0.4, -0.2, 0.0, 20.0], [0.0, 0.0, math.log(2), -math.log(2)])):
        nn.init.zeros_(head.box_deltas.weight)
        head.box_deltas.bias.data = torch.tensor(bias)
    boxes = torch.tensor([[[10.0, 20, 30, 60]]])
    first, second = model.roi_heads.refine(maps, rows, boxes.requires_grad_(), queries[:, :1])
    height = 40 * 100000 / 16
    expected = torch.tensor([14.0, 36 - height / 2, 34, 36 + height / 2])
    torch.testing.assert_close(first.boxes[0, 0], expected)
    torch.testing.assert_close(second.boxes[0, 0], torch.tensor([4.0, 36 - height / 4, 44, 36 + height / 4]))
    assert torch.autograd.grad(first.boxes.sum(), boxes, retain_graph=True)[0].any()
    with pytest.raises(RuntimeError, match="not have been used"):
        torch.autograd.grad(second.boxes.sum(), boxes, retain_graph=True)
    assert torch.autograd.grad(second.queries.pow(3).sum(), first.queries)[0].any()


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


@pytest.mark.parametrize(
    ("opts", "match"),
    [
        (("MODEL.ISTR.ROI_ATTENTION", "static"), "ROI_ATTENTION"),
        (("MODEL.ISTR.NUM_DYNAMIC", 3), "NUM_DYNAMIC"),
        (("MODEL.ISTR.MASK_COST", "l2"), "MASK_COST"),
        (("MODEL.ISTR.MASK_LOSS", "none"), "MASK_LOSS"),
        (("MODEL.ISTR.HIDDEN_DIM", 32), "HIDDEN_DIM"),
        (("MODEL.ISTR.NHEADS", 3), "NHEADS"),
        (("MODEL.ROI_HEADS.IN_FEATURES", ["res4"]), "IN_FEATURES"),
        (("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 0), "SAMPLING_RATIO"),
        (("MODEL.ISTR.MASK_ENCODING_METHOD", "AE", "MODEL.ISTR.MASK_COST", "dice"), "MASK_COST"),
        (("MODEL.ISTR.MASK_ENCODING_METHOD", "AE", "MODEL.ISTR.MASK_LOSS", "l2"), "MASK_LOSS"),
    ],
)
def test_values_that_cannot_be_used(opts, match):
    with pytest.raises(ConfigError, match=match):
        tiny_model("ISTR", *opts)
