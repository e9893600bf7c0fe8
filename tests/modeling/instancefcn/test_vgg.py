"""VGG-16: the hole algorithm against the strided network, torchvision's weights."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from instseg_d2.checkpoint import InstSegCheckpointer
from instseg_d2.checkpoint.authors import convert_state_dict
from instseg_d2.config import load_config
from instseg_d2.modeling.instancefcn import VGG16


def torchvision_features(seed=0):
    torch.manual_seed(seed)
    features = make_layers(cfgs["D"]).eval()
    for layer in features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)
    return features


@pytest.fixture(scope="module")
def features():
    return torchvision_features()


def test_vgg16_is_torchvisions_with_holes(features):
    vgg = VGG16(["conv3", "conv4", "conv5"]).eval()
    vgg.features.load_state_dict(features.state_dict())
    x = torch.randn(2, 3, 48, 64)
    with torch.no_grad():
        maps = vgg(x)
        torch.testing.assert_close(maps["conv3"], features[:16](x))
        torch.testing.assert_close(maps["conv4"], features[:23](x))
        # At every second position it is the strided network itself.
        torch.testing.assert_close(maps["conv5"][..., ::2, ::2], features[:30](x), rtol=1e-4, atol=1e-4)
        # And at the others the strided network on the fourth map moved by a cell.
        for dy in (0, 1):
            for dx in (0, 1):
                moved = nn.functional.pad(features[:23](x), (0, dx, 0, dy))[..., dy:, dx:]
                expected = features[23:30](moved)
                found = maps["conv5"][..., dy::2, dx::2]
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    shapes = vgg.output_shape()
    assert {name: (s.channels, s.stride) for name, s in shapes.items()} == {
        "conv3": (256, 4),
        "conv4": (512, 8),
        "conv5": (512, 8),
    }
    assert maps["conv5"].shape == (2, 512, 6, 8)
    assert vgg.size_divisibility == 8


def test_frozen_stages_and_names():
    vgg = VGG16(["conv3"], freeze_at=2)
    trained = {name.split(".")[1] for name, p in vgg.named_parameters() if p.requires_grad}
    assert trained == {"10", "12", "14"}
    for names in (["conv6"], []):
        with pytest.raises(ValueError, match="VGG-16 only has the maps"):
            VGG16(names)


def test_torchvisions_weights_load(features, tmp_path):
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    state.update({f"classifier.{i}.{kind}": torch.zeros(2) for i in (0, 3, 6) for kind in ("weight", "bias")})
    converted = convert_state_dict(state)
    heads = {f"roi_heads.box_head.fc{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}
    assert set(converted) == heads | {f"backbone.{name}" for name in state if name.startswith("features")}
    torch.save(state, tmp_path / "vgg16.pth")
    opts = ["MODEL.DEVICE", "cpu", "MODEL.INSTANCE_FCN.HIDDEN_DIM", 8]
    model = build_model(load_config("configs/InstanceFCN/VGG16_k3.yaml", opts))
    InstSegCheckpointer(model).load(str(tmp_path / "vgg16.pth"))
    loaded = model.backbone.features.state_dict()
    assert set(loaded) == set(features.state_dict())
    assert all(torch.equal(loaded[name], value) for name, value in features.state_dict().items())
