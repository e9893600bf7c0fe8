"""DLA-34 against a transcription layer by layer, under the names of AdelaiDet's release."""

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import nn

from instseg_d2.checkpoint import InstSegCheckpointer
from instseg_d2.checkpoint.authors import convert_state_dict
from instseg_d2.inference.optimize import optimize_for_inference
from instseg_d2.modeling.backbone import build_backbone
from tests.modeling.backbone.naive_backbones import Weights, batch_norm, conv
from tests.tiny import random_batch, tiny_config

LEVELS = ["level3", "level4", "level5"]
DLA = [
    "MODEL.BACKBONE.NAME", "build_fcos_dla_fpn_backbone",
    "MODEL.DLA.OUT_FEATURES", LEVELS,
    "MODEL.FPN.IN_FEATURES", LEVELS,
]  # fmt: skip


def conv_norm(w, convolution, norm, x, out, k, stride=1):
    return batch_norm(w, norm, conv(w, convolution, x, out, k, stride))


def block(w, name, x, shortcut, out, stride):
    y = conv_norm(w, f"{name}.conv1", f"{name}.bn1", x, out, 3, stride).relu()
    return (conv_norm(w, f"{name}.conv2", f"{name}.bn2", y, out, 3) + shortcut).relu()


def tree(w, name, x, out, stride, children):
    """Two blocks and a root over (second, first, children); the input of the first is projected where it changes."""
    shortcut = F.max_pool2d(x, stride, stride) if stride > 1 else x
    if x.shape[1] != out:
        shortcut = conv_norm(w, f"{name}.project.0", f"{name}.project.1", shortcut, out, 1)
    first = block(w, f"{name}.tree1", x, shortcut, out, stride)
    second = block(w, f"{name}.tree2", first, first, out, 1)
    return conv_norm(w, f"{name}.root.conv", f"{name}.root.bn", torch.cat([second, first, *children], 1), out, 1).relu()


def dla34(w, x):
    """Maps of levels 2 to 5, strides 4 to 32."""
    x = conv_norm(w, "base_layer.0", "base_layer.1", x, 16, 7).relu()
    x = conv_norm(w, "level0.0", "level0.1", x, 16, 3).relu()
    x = conv_norm(w, "level1.0", "level1.1", x, 32, 3, 2).relu()
    maps = [tree(w, "level2", x, 64, 2, [])]
    for level, out in ((3, 128), (4, 256)):
        x = maps[-1]
        pooled = F.max_pool2d(x, 2)
        w.get(f"level{level}.project.0.weight", out, x.shape[1], 1, 1)  # stored, without effect
        first = tree(w, f"level{level}.tree1", x, out, 2, [])
        maps.append(tree(w, f"level{level}.tree2", first, out, 1, [pooled, first]))
    return [*maps, tree(w, "level5", maps[-1], 512, 2, [F.max_pool2d(maps[-1], 2)])]


def test_the_network_of_the_authors():
    backbone = build_backbone(tiny_config("BlendMask", *DLA)).eval()
    weights, x = Weights(), torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = dla34(weights, x)[1:]
        official = {f"backbone.bottom_up.{name}": value for name, value in weights.items()}
        official["proposal_generator.fcos_head.scales.0.scale"] = torch.ones(1)  # marks AdelaiDet's files
        converted = convert_state_dict(official)
        assert len(converted) == len(official) - 2
        found = nn.ModuleDict({"backbone": backbone}).load_state_dict(converted, strict=False)
        assert found.unexpected_keys == ["proposal_generator.head.scales.0"]
        assert all("fpn" in key or "top_block" in key for key in found.missing_keys)
        maps = backbone.bottom_up(x)
    assert list(maps) == LEVELS
    assert [backbone.bottom_up.output_shape()[name].stride for name in LEVELS] == [8, 16, 32]
    for value, other in zip(maps.values(), expected):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-3 * other.abs().max().item())
    assert [backbone.output_shape()[f"p{level}"].stride for level in range(3, 8)] == [8, 16, 32, 64, 128]


@pytest.mark.parametrize("norm", ["FrozenBN", "SyncBN"])
def test_losses_reach_every_parameter(norm):
    torch.manual_seed(0)
    model = build_model(tiny_config("BlendMask", *DLA, "MODEL.DLA.NORM", norm))
    norms = {type(m) for m in model.backbone.bottom_up.modules() if "BatchNorm" in type(m).__name__}
    assert [t.__name__ for t in norms] == [{"FrozenBN": "FrozenBatchNorm2d"}.get(norm, "SyncBatchNorm")]
    for counts in ([2, 0], [0, 0]):
        model.zero_grad()
        losses = model(random_batch(counts, 64, 96))
        sum(losses.values()).backward()
        assert all(loss.isfinite() for loss in losses.values())
        assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]


def test_the_fast_form_gives_the_same_maps():
    backbone = build_backbone(tiny_config("BlendMask", *DLA, "MODEL.DLA.NORM", "SyncBN")).eval()
    generator = torch.Generator().manual_seed(0)
    for module in backbone.modules():
        if isinstance(module, nn.SyncBatchNorm):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    fast = optimize_for_inference(backbone)
    assert not [m for m in fast.bottom_up.modules() if isinstance(m, nn.SyncBatchNorm)]
    x = torch.randn(1, 3, 64, 64, generator=generator)
    with torch.no_grad():
        for name, value in backbone(x).items():
            torch.testing.assert_close(fast(x)[name], value, rtol=1e-3, atol=1e-4)


def test_classification_weights(tmp_path):
    """The file of a classifier, with the unused projections of the authors' own, gives the classifier's features."""
    torch.manual_seed(0)
    theirs = timm.create_model("dla34").eval()
    state = theirs.state_dict()
    state["level3.project.0.weight"] = torch.zeros(128, 64, 1, 1)
    torch.save(state, tmp_path / "dla34.pth")
    model = build_model(tiny_config("BlendMask", *DLA)).eval()
    InstSegCheckpointer(model).load(str(tmp_path / "dla34.pth"))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = model.backbone.bottom_up(x)
        torch.testing.assert_close(maps["level5"], theirs.forward_features(x), rtol=1e-4, atol=1e-4)
