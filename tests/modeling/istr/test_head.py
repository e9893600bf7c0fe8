"""ISTR's head, piece by piece, against the paper's equations."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from instseg_d2.modeling.istr.head import (
    DynamicAttention,
    MultiHeadRoIAttention,
    RefinementHead,
    RoIMaskBranch,
    VectorMaskBranch,
    init_heads,
)
from tests.tiny import tiny_model

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
