"""Backbones from timm: any of them by name, and the ones of SparseInst's authors against naive transcriptions."""

import sys

import pytest
import timm
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, build_model
from torch import nn

from instseg_d2.checkpoint import InstSegCheckpointer
from instseg_d2.checkpoint.authors import convert_classifier
from instseg_d2.config import load_config
from instseg_d2.engine.solver import build_optimizer
from instseg_d2.inference.optimize import optimize_for_inference
from instseg_d2.layers import SelfOffsetDeformConv
from instseg_d2.modeling.backbone import TimmBackbone, build_backbone
from instseg_d2.modeling.sparseinst.authors import convert_sparseinst
from tests.modeling.backbone.naive_backbones import Weights, csp_darknet53, pvt_v2, resnet_d
from tests.tiny import random_batch

SMALL = [
    "MODEL.DEVICE", "cpu",
    "MODEL.META_ARCHITECTURE", "SparseInst",
    "MODEL.BACKBONE.FREEZE_AT", 0,
    "MODEL.SPARSE_INST.ENCODER.NUM_CHANNELS", 16,
    "MODEL.SPARSE_INST.DECODER.NUM_MASKS", 4,
    "MODEL.SPARSE_INST.DECODER.NUM_CLASSES", 3,
    "MODEL.SPARSE_INST.DECODER.INST.DIM", 16,
    "MODEL.SPARSE_INST.DECODER.INST.CONVS", 1,
    "MODEL.SPARSE_INST.DECODER.MASK.DIM", 16,
    "MODEL.SPARSE_INST.DECODER.MASK.CONVS", 1,
]  # fmt: skip
VD = ["MODEL.BACKBONE.NAME", "build_resnet_vd_backbone", "MODEL.RESNETS.DEPTH", 26,
      "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]]  # fmt: skip
DEFORMABLE = ["MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, True, True]]
CSP = ["MODEL.BACKBONE.NAME", "build_cspnet_backbone", "MODEL.CSPNET.NAME", "cspdarknet53",
       "MODEL.CSPNET.OUT_FEATURES", ["csp2", "csp3", "csp4"],
       "MODEL.SPARSE_INST.ENCODER.IN_FEATURES", ["csp2", "csp3", "csp4"]]  # fmt: skip
PVT = ["MODEL.BACKBONE.NAME", "build_pyramid_vision_transformer",
       "MODEL.SPARSE_INST.ENCODER.IN_FEATURES", ["p2", "p3", "p4"]]  # fmt: skip
# options, and the maps of strides 8, 16, 32 of a network like it, written out (26 layers: two blocks a stage)
AUTHORS = {
    "resnet_vd": (VD, lambda w, x: resnet_d(w, x, (2, 2, 2, 2))[1:]),
    "resnet_vd_dcn": ([*VD, *DEFORMABLE], lambda w, x: resnet_d(w, x, (2, 2, 2, 2), (2, 3))[1:]),
    "cspdarknet53": (CSP, lambda w, x: csp_darknet53(w, x)[2:]),
    "pvt_b1": (PVT, lambda w, x: pvt_v2(w, x, (2, 2, 2, 2))[1:]),
    "pvt_b2_li": ([*PVT, "MODEL.PVT.LINEAR", True], lambda w, x: pvt_v2(w, x, (3, 4, 6, 3), linear=True)[1:]),
}


def config(*opts):
    return load_config("", [*SMALL, *opts])


def generic(name, *opts):
    return build_backbone(config("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name, *opts))


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("name", AUTHORS)
def test_the_networks_of_the_authors(name):
    """Weights under the authors' names give what the layers written out give, at a size that strides do not divide."""
    opts, naive = AUTHORS[name]
    backbone = build_backbone(config(*opts)).eval()
    weights, x = Weights(), torch.randn(2, 3, 72, 104, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = naive(weights, x)
        converted = convert_sparseinst(under("backbone.", weights))
        found = nn.ModuleDict({"backbone": backbone}).load_state_dict(converted, strict=False)
        assert not found.unexpected_keys
        assert all(key.endswith("num_batches_tracked") for key in found.missing_keys)
        maps = backbone(x)
    shapes = backbone.output_shape()
    assert [shapes[key].stride for key in maps] == [8, 16, 32]
    assert [shapes[key].channels for key in maps] == [m.shape[1] for m in expected]
    for key, value in zip(maps, expected):
        torch.testing.assert_close(maps[key], value, rtol=1e-3, atol=1e-3 * value.abs().max().item())


@pytest.mark.parametrize("name", AUTHORS)
def test_losses_reach_every_parameter(name):
    torch.manual_seed(0)
    model = build_model(config(*AUTHORS[name][0]))
    for counts in ([2, 0], [0, 0]):
        model.zero_grad()
        losses = model(random_batch(counts, 64, 96))
        sum(losses.values()).backward()
        without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert not without
        assert all(loss.isfinite() for loss in losses.values())


def test_epsilons_and_drop_path_of_pvt():
    backbone = build_backbone(config(*PVT))
    for name, layer in backbone.named_modules():
        if isinstance(layer, nn.LayerNorm):
            inner = any(part in name for part in ("patch_embed", "downsample", "attn"))
            assert layer.eps == (1e-5 if inner else 1e-6), name
    rates = [
        getattr(block.drop_path1, "drop_prob", 0.0)
        for stage in range(4)
        for block in backbone.net[f"stages_{stage}"].blocks
    ]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])


def test_weight_decay_follows_the_authors_names():
    weights, x = Weights(), torch.zeros(1, 3, 64, 64)
    pvt_v2(weights, x, (2, 2, 2, 2))
    words = ("norm", "patch_embed", "cls_token")
    theirs = {n: 0.0 if any(word in n for word in words) else 0.05 for n in under("backbone.", weights)}
    expected = dict(zip(convert_sparseinst(theirs), theirs.values()))
    assert set(expected.values()) == {0.0, 0.05}
    cfg = config(*PVT, "SOLVER.WEIGHT_DECAY", 0.05)
    model = build_model(cfg)
    names = {p: n for n, p in model.named_parameters()}
    groups = build_optimizer(cfg, model).param_groups
    decay = {names[p]: group["weight_decay"] for group in groups for p in group["params"]}
    assert {n: d for n, d in decay.items() if n.startswith("backbone")} == expected
    assert {d for n, d in decay.items() if not n.startswith("backbone")} == {0.05}


def test_deformable_convolutions_start_as_plain_ones():
    torch.manual_seed(0)
    conv = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
    x = torch.randn(2, 6, 9, 12)
    plain = SelfOffsetDeformConv(conv, modulated=False)
    assert plain.offset.weight.shape == (18, 6, 3, 3)
    torch.testing.assert_close(plain(x), conv(x), rtol=1e-4, atol=1e-5)
    modulated = SelfOffsetDeformConv(conv, modulated=True)
    assert modulated.offset.weight.shape == (27, 6, 3, 3)
    torch.testing.assert_close(modulated(x), conv(x) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modulated", [False, True])
def test_deformable_convolutions_under_autocast(modulated):
    torch.manual_seed(0)
    layer = SelfOffsetDeformConv(nn.Conv2d(6, 8, 3, padding=1), modulated=modulated)
    nn.init.normal_(layer.offset.bias)
    x = torch.randn(2, 6, 9, 12)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.bfloat16())
    torch.testing.assert_close(found.float(), layer(x), rtol=0.05, atol=0.05)
    found.sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_deformable_stages():
    def found(backbone):
        return [n for n, m in backbone.named_modules() if isinstance(m, SelfOffsetDeformConv)]

    everywhere = ["net.layer3.0.conv2", "net.layer3.1.conv2", "net.layer4.0.conv2", "net.layer4.1.conv2"]
    assert found(build_backbone(config(*VD, *DEFORMABLE))) == everywhere
    assert found(build_backbone(config(*VD, *DEFORMABLE, "MODEL.RESNETS.DEFORM_INTERVAL", 2))) == everywhere[::2]
    assert not found(build_backbone(config(*VD)))
    with pytest.raises(ValueError, match="DEFORM_ON_PER_STAGE needs bottleneck blocks"):
        build_backbone(config(*VD, *DEFORMABLE, "MODEL.RESNETS.DEPTH", 18))


def test_detectron2s_resnet_is_deformable_without_its_extension():
    """18 channels of offsets in every block of res4 and res5, under the builder's own name."""
    opts = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"]]
    with torch.device("meta"):
        backbone = build_backbone(config(*opts, *DEFORMABLE))
        maps = backbone(torch.empty(1, 3, 64, 96))
    shapes = {n: tuple(p.shape) for n, p in backbone.named_parameters() if "conv2_offset.weight" in n}
    assert shapes == {
        **{f"res4.{i}.conv2_offset.weight": (18, 256, 3, 3) for i in range(6)},
        **{f"res5.{i}.conv2_offset.weight": (18, 512, 3, 3) for i in range(3)},
    }
    assert maps["res5"].shape == (1, 2048, 2, 3)


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_mambaout"])
def test_any_network_of_timm(name):
    """The maps asked for, channels first, as timm itself gives them."""
    torch.manual_seed(0)
    backbone = generic(name, "MODEL.TIMM.OUT_FEATURES", ["p5", "p3"], "MODEL.TIMM.NORM", "").eval()
    theirs = timm.create_model(name, features_only=True).eval()
    theirs.load_state_dict(backbone.net.state_dict(), strict=False)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        maps, all_maps = backbone(x), theirs(x)
    assert list(maps) == ["p3", "p5"]
    if theirs.output_fmt == "NHWC":
        all_maps = [m.permute(0, 3, 1, 2) for m in all_maps]
    wanted = {m.shape[-2:]: m for m in all_maps}
    for key, size in (("p3", (8, 12)), ("p5", (2, 3))):
        assert maps[key].shape == (1, backbone.output_shape()[key].channels, *size)
        torch.testing.assert_close(maps[key], wanted[torch.Size(size)])


def test_it_feeds_an_fpn():
    fpn = FPN(generic("test_resnet"), ["res3", "res4", "res5"], 8)
    assert {k: v.shape[-2:] for k, v in fpn(torch.zeros(1, 3, 64, 64)).items()} == {
        "p3": (8, 8),
        "p4": (4, 4),
        "p5": (2, 2),
    }


def test_it_feeds_the_fpn_of_fcos():
    opts = ["MODEL.BACKBONE.NAME", "build_fcos_timm_fpn_backbone", "MODEL.TIMM.NAME", "test_resnet"]
    opts += ["MODEL.TIMM.OUT_FEATURES", ["res3", "res4"], "MODEL.FPN.IN_FEATURES", ["res3", "res4"]]
    fpn = build_backbone(config(*opts, "MODEL.FCOS.TOP_LEVELS", 2, "MODEL.FPN.OUT_CHANNELS", 8)).eval()
    x = torch.rand(1, 3, 64, 64)
    maps = fpn(x)
    assert {name: map.shape[1:] for name, map in maps.items()} == {
        "p3": (8, 8, 8),
        "p4": (8, 4, 4),
        "p5": (8, 2, 2),
        "p6": (8, 1, 1),
    }
    # The highest level of the pyramid proper is a convolution of the last map of timm's network alone.
    last = fpn.bottom_up.net(x)[-1]
    assert torch.equal(maps["p4"], fpn.fpn_output4(fpn.fpn_lateral4(last)))


def test_stages_after_the_last_map_are_left_out():
    assert list(generic("test_resnet", "MODEL.TIMM.OUT_FEATURES", ["res3"]).net)[-1] == "layer2"


def randomised(model):
    for name, value in model.state_dict().items():
        if name.endswith("running_var") or (name.endswith("weight") and value.dim() == 1):
            value.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            value.normal_(std=0.1)
    return model.eval()


def batch_norms(module):
    return [m for m in module.modules() if hasattr(m, "running_var")]


@pytest.mark.parametrize("name", ["test_resnet", "cspdarknet53"])
def test_norms(name):
    frozen, trained = generic(name), generic(name, "MODEL.TIMM.NORM", "BN")
    assert len(batch_norms(frozen)) == len(batch_norms(trained)) > 5
    assert all(isinstance(m, nn.BatchNorm2d) for m in batch_norms(trained))
    assert not any(list(m.parameters()) for m in batch_norms(frozen))
    # No branch starts at zero for ever.
    assert all(bool((m.weight == 1).all()) for m in batch_norms(frozen))
    before = {k: v.clone() for k, v in frozen.state_dict().items()}
    frozen.train()(torch.randn(1, 3, 64, 64))
    assert all(torch.equal(v, before[k]) for k, v in frozen.state_dict().items())


@pytest.mark.parametrize("name", ["resnet_vd_dcn", "cspdarknet53", "pvt_b1"])
def test_folded_for_inference(name):
    """No batch norm is left, and the maps are the same."""
    torch.manual_seed(0)
    backbone = randomised(build_backbone(config(*AUTHORS[name][0])))
    x = torch.randn(1, 3, 64, 64)
    folded = optimize_for_inference(backbone)
    assert bool(batch_norms(backbone)) == (name != "pvt_b1")
    assert not batch_norms(folded)
    with torch.no_grad():
        for key, value in backbone(x).items():
            scale = value.abs().max().item()
            torch.testing.assert_close(folded(x)[key], value, rtol=1e-3, atol=1e-4 * scale)


def test_frozen_norms_keep_the_type():
    backbone = generic("test_resnet")
    with torch.autocast("cpu", torch.bfloat16):
        assert {m.dtype for m in backbone(torch.randn(1, 3, 64, 64)).values()} == {torch.bfloat16}


def test_freezing():
    def trained(freeze_at):
        backbone = generic("test_resnet", "MODEL.BACKBONE.FREEZE_AT", freeze_at, "MODEL.TIMM.NORM", "BN")
        return backbone, {n.split(".")[1] for n, p in backbone.named_parameters() if p.requires_grad}

    assert trained(0)[1] == {"conv1", "bn1", "layer1", "layer2", "layer3", "layer4"}
    assert trained(1)[1] == {"layer1", "layer2", "layer3", "layer4"}
    backbone, names = trained(2)
    assert names == {"layer2", "layer3", "layer4"}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in batch_norms(backbone.net["layer1"]))
    assert all(isinstance(m, nn.BatchNorm2d) for m in batch_norms(backbone.net["layer2"]))
    vit = TimmBackbone("test_vit", {"p4": 16}, freeze_at=4)  # all its maps have stride 16
    assert not any(parameter.requires_grad for parameter in vit.parameters())
    with pytest.raises(ValueError, match=r"frozen up to stride 4, .*FREEZE_AT to 0"):
        TimmBackbone("hrnet_w18_small", {"p2": 4, "p5": 32}, freeze_at=2)


@pytest.mark.parametrize(("weights", "expected"), [("", True), ("model.pth", False)])
def test_timms_weights_are_for_models_without_others(monkeypatch, weights, expected):
    asked, create = [], timm.create_model

    def without_download(name, pretrained=False, **arguments):
        asked.append(pretrained)
        return create(name, **arguments)

    monkeypatch.setattr(timm, "create_model", without_download)
    generic("test_resnet", "MODEL.TIMM.PRETRAINED", True, "MODEL.WEIGHTS", weights)
    assert asked[-1] is expected
    generic("test_resnet")
    assert asked[-1] is False


@pytest.mark.parametrize(
    ("opts", "match"),
    [
        (["MODEL.TIMM.NAME", "resnet50q"], r"timm has no network 'resnet50q'; did you mean resnet50"),
        (["MODEL.TIMM.NORM", "GN"], "FrozenBN, BN or empty, not 'GN'"),
        (["MODEL.TIMM.OUT_FEATURES", ["layer3"]], r"MODEL.TIMM.OUT_FEATURES is \['layer3'\]; it takes names like res2"),
        (
            ["MODEL.TIMM.OUT_FEATURES", ["res6"]],
            "test_resnet of timm has no map of stride 64; its strides: 2, 4, 8, 16, 32",
        ),
    ],
)
def test_mistakes_are_named(opts, match):
    with pytest.raises(ValueError, match=match):
        generic("test_resnet", *opts)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        generic("test_resnet")


@pytest.mark.parametrize("name", AUTHORS)
def test_classification_weights_have_the_same_names(name):
    """What the converter of whole models makes of the backbone, without its place in the model and the last layer."""
    weights = Weights()
    AUTHORS[name][1](weights, torch.zeros(1, 3, 64, 64))
    bare = {**weights, "fc.weight": torch.zeros(5, 5), "head.fc.bias": torch.zeros(5)}
    assert list(under("backbone.", convert_classifier(bare))) == list(convert_sparseinst(under("backbone.", weights)))


def test_classification_files_of_timm_and_torchvision(tmp_path):
    """A checkpoint of the classifier gives the backbone the classifier's own features."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    x = torch.randn(1, 3, 64, 64)
    path = str(tmp_path / "classifier.pth")

    theirs = randomised(timm.create_model("resnet26d"))
    torch.save(theirs.state_dict(), path)
    model = build_model(config(*VD)).eval()
    InstSegCheckpointer(model).load(path)
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(x)["res5"], theirs.forward_features(x), rtol=1e-4, atol=1e-4)

    theirs = randomised(resnet18())
    torch.save(theirs.state_dict(), path)
    opts = [
        "MODEL.BACKBONE.NAME",
        "build_resnet_backbone",
        "MODEL.RESNETS.DEPTH",
        18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS",
        64,
    ]
    model = build_model(config(*opts, "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"])).eval()
    InstSegCheckpointer(model).load(path)
    features = nn.Sequential(*list(theirs.children())[:-2])
    with torch.no_grad():
        torch.testing.assert_close(model.backbone(x)["res5"], features(x), rtol=1e-4, atol=1e-4)


def test_input_channels():
    backbone = build_backbone(config(*CSP, "MODEL.PIXEL_MEAN", [0.0], "MODEL.PIXEL_STD", [1.0]))
    assert backbone.net["stem_conv1"].conv.weight.shape == (32, 1, 3, 3)
    assert isinstance(backbone.output_shape()["csp2"], ShapeSpec)
