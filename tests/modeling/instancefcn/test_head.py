"""InstanceFCN's two branches and the resized images, written out."""

import pytest
import torch
import torch.nn.functional as F

from instseg_d2.modeling.instancefcn.head import InstanceFCNHead
from tests.tiny import random_batch, tiny_model


def test_branches():
    """1x1, ReLU, 3x3 for the k * k score maps; 3x3, ReLU, 1x1 for objectness."""
    torch.manual_seed(0)
    head = InstanceFCNHead(in_channels=6, hidden_dim=8, grid=3)
    for layer in head.children():
        torch.nn.init.normal_(layer.weight)
        torch.nn.init.normal_(layer.bias)
    x = torch.randn(2, 6, 5, 7)
    w = head.state_dict()
    padded = F.pad(x, (1, 1, 1, 1))
    hidden = torch.einsum("ncyx,oc->noyx", x, w["instance_conv.weight"][..., 0, 0])
    hidden = F.pad((hidden + w["instance_conv.bias"][:, None, None]).relu(), (1, 1, 1, 1))
    score_maps, objectness = head(x)
    for y in range(5):
        for column in range(7):
            patch = hidden[:, :, y : y + 3, column : column + 3]
            expected = torch.einsum("ncij,ocij->no", patch, w["score_maps.weight"]) + w["score_maps.bias"]
            torch.testing.assert_close(score_maps[:, :, y, column], expected, rtol=1e-4, atol=1e-4)
            patch = padded[:, :, y : y + 3, column : column + 3]
            values = torch.einsum("ncij,ocij->no", patch, w["objectness_conv.weight"]) + w["objectness_conv.bias"]
            expected = values.relu() @ w["objectness.weight"][0, :, 0, 0] + w["objectness.bias"]
            torch.testing.assert_close(objectness[:, y, column], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("scale", "size"), [(35, (35, 50)), (140, (140, 200)), (70, (70, 100))])
def test_images_at_a_scale(scale, size):
    """The shorter side; means are kept, also where pixels are many to one; the padding is beyond the image."""
    model = tiny_model("InstanceFCN")
    images = model.preprocess(random_batch([0], 70, 100))
    found = model.at_scale(images, scale)
    assert found.image_sizes == [size]
    assert not found.tensor[0, :, size[0] :].any()
    assert not found.tensor[0, :, :, size[1] :].any()
    image, resized = images.tensor[0, :, :70, :100], found.tensor[0, :, : size[0], : size[1]]
    torch.testing.assert_close(resized.mean((1, 2)), image.mean((1, 2)), rtol=0, atol=0.02)
    if scale == 70:
        assert torch.equal(resized, image)
    if scale == 35:  # a tent over four pixels
        kernel = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        inner = F.conv2d(image[:, None, 1:, 1:], (kernel[:, None] * kernel)[None, None], stride=2)[:, 0]
        torch.testing.assert_close(resized[:, 1:34, 1:49], inner, rtol=0, atol=1e-4)
