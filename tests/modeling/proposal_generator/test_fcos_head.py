"""FCOS's head against its layers written out, with and without shared convolutions and scales."""

import pytest
import torch
import torch.nn.functional as F

from instseg_d2.modeling.proposal_generator.fcos_head import FCOSHead


def conv(weights, name, x):
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)


def tower(weights, name, x, convs):
    for i in range(convs):
        x = conv(weights, f"{name}.blocks.{i}.conv", x)
        x = F.relu(F.group_norm(x, 32, *(weights[f"{name}.blocks.{i}.norm.{part}"] for part in ("weight", "bias"))))
    return x


@pytest.mark.parametrize("use_scale", [True, False])
@pytest.mark.parametrize("shared", [0, 2])
def test_layers_written_out(shared, use_scale):
    torch.manual_seed(0)
    head = FCOSHead(
        channels=32, strides=[8, 16], num_classes=3, num_shared_convs=shared, num_class_convs=1, num_box_convs=2,
        use_scale=use_scale,
    )  # fmt: skip
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    w = head.state_dict()
    features = [torch.randn(2, 32, 4, 6), torch.randn(2, 32, 2, 3)]
    outputs = head(features)
    rows = {"class_logits": [], "ltrb": [], "quality_logits": []}
    for level, x in enumerate(features):
        x = tower(w, "shared_tower", x, shared)
        boxes = tower(w, "box_tower", x, 2)
        torch.testing.assert_close(outputs.box_tower[level], boxes, rtol=1e-4, atol=1e-4)
        distances = F.relu(conv(w, "box_distances", boxes) * (w[f"scales.{level}"] if use_scale else 1))
        logits = conv(w, "class_logits", tower(w, "class_tower", x, 1))
        for image in range(2):
            for name, maps in zip(rows, (logits, distances, conv(w, "quality_logits", boxes))):
                rows[name] += [maps[image, :, y, c] for y in range(x.shape[2]) for c in range(x.shape[3])]
    for name, expected in rows.items():
        expected = torch.stack(expected).squeeze(1) if name == "quality_logits" else torch.stack(expected)
        torch.testing.assert_close(getattr(outputs, name), expected, rtol=1e-4, atol=1e-4)
