"""
Every family of timm's networks is a backbone, or says why not: under the FPN of FCOS and under SparseInst's encoder.

Networks of each kind of timm's feature extractors are always tried, without values and memory for them, and all
families where INSTSEG_TIMM is set (some minutes).
"""

import os
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from instseg_d2.config import load_config
from instseg_d2.errors import ConfigError
from instseg_d2.inference.optimize import optimize_for_inference
from instseg_d2.modeling.backbone import TimmBackbone, build_backbone
from instseg_d2.modeling.backbone.timm_norms import BATCH_NORMS, freeze_norms
from instseg_d2.modeling.build import build
from instseg_d2.modeling.sparseinst.encoder import build_sparse_inst_encoder
from tests.modeling.backbone.test_timm import randomised

LINES = Path(__file__).with_name("timm_families.txt").read_text().splitlines()
FAMILIES = {module: (name, strides) for module, name, strides in (line.split() for line in LINES if line[0] != "#")}
ALWAYS = {
    "resnet": "FeatureListNet", "mambaout": "FeatureListNet", "efficientnet": "EfficientNetFeatures",
    "mobilenetv3": "MobileNetV3Features", "hrnet": "HighResolutionNetFeatures", "cspnext": "FeatureGetterNet",
    "vision_transformer": "FeatureGetterNet", "xception_aligned": "FeatureHookNet", "pit": "", "crossvit": "",
}  # fmt: skip
TRIED = FAMILIES if "INSTSEG_TIMM" in os.environ else ALWAYS
HEIGHT, WIDTH = 128, 192


def config(builder, name, strides, norm="FrozenBN"):
    names = [f"res{stride.bit_length() - 1}" for stride in strides]
    opts = ["MODEL.DEVICE", "cpu", "MODEL.BACKBONE.NAME", builder, "MODEL.BACKBONE.FREEZE_AT", 0]
    opts += ["MODEL.TIMM.NAME", name, "MODEL.TIMM.OUT_FEATURES", names, "MODEL.TIMM.NORM", norm]
    opts += ["MODEL.FPN.IN_FEATURES", names, "MODEL.FPN.OUT_CHANNELS", 8, "MODEL.FCOS.TOP_LEVELS", 2]
    opts += ["MODEL.SPARSE_INST.ENCODER.IN_FEATURES", names, "MODEL.SPARSE_INST.ENCODER.NUM_CHANNELS", 16]
    return load_config("", opts)


def test_every_family_is_listed():
    if f"timm {timm.__version__}," not in LINES[0]:
        pytest.skip("the list is of another version of timm")
    assert set(timm.list_modules()) == set(FAMILIES)


@pytest.mark.parametrize("family", ALWAYS)
def test_each_kind_of_extractor_is_tried(family):
    if ALWAYS[family]:
        name, strides = FAMILIES[family]
        backbone = TimmBackbone(name, {"x": int(strides.split(",")[-1])})
        assert type(backbone.net).__name__ == ALWAYS[family]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name in TRIED])
def test_family(family):
    name, known = FAMILIES[family]
    if not known[0].isdigit():
        message = (
            "cannot be a backbone, because it has no maps for images of any size"
            if known == "refused"
            else "has no map of"
        )
        for builder in ("build_timm_backbone", "build_fcos_timm_fpn_backbone"):
            with pytest.raises(ValueError, match=rf"^{name} of timm {message}"):
                build_backbone(config(builder, name, [8, 16, 32]))
        return
    strides = [int(stride) for stride in known.split(",")]
    usual = [stride for stride in strides if stride >= 8]
    missing = [stride for stride in (8, 16, 32) if stride not in strides]
    if missing:
        with pytest.raises(ValueError, match=f"{name} of timm has no map of stride .*; its strides: {strides[0]}"):
            build_backbone(config("build_timm_backbone", name, [8, 16, 32]))
    device = "cpu" if family == "gemma4_vit" else "meta"  # it looks at values
    for chosen in {tuple(usual), (usual[-1],)}:
        for norm in ("FrozenBN", "BN"):
            with torch.device(device), torch.no_grad():
                cfg = config("build_fcos_timm_fpn_backbone", name, chosen, norm)
                fpn = build_backbone(cfg).eval()
                encoder = build_sparse_inst_encoder(cfg, fpn.bottom_up.output_shape())
                x = torch.zeros(1, 3, HEIGHT, WIDTH)
                pyramid, fused = fpn(x), encoder(fpn.bottom_up(x))
            last = chosen[-1].bit_length() - 1
            names = [f"p{stride.bit_length() - 1}" for stride in chosen] + [f"p{last + 1}", f"p{last + 2}"]
            assert list(pyramid) == names
            for key, m in pyramid.items():
                stride = 2 ** int(key[1:])
                assert m.shape == (1, 8, -(-HEIGHT // stride), -(-WIDTH // stride))
            assert fused.shape == (1, 16, HEIGHT // chosen[0], WIDTH // chosen[0])
            trained = [m for m in fpn.modules() if isinstance(m, (*BATCH_NORMS, nn.SyncBatchNorm))]
            assert not (trained and norm == "FrozenBN")


NETWORKS = {
    "test_efficientnet": (8, 16, 32), "lcnet_035": (8, 16, 32), "hrnet_w18_small": (8, 32), "cspnext_tiny": (8, 16, 32),
    "test_vit": (16,), "xception41p": (8, 16), "dpn48b": (8, 16), "test_byobnet": (4, 8),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_maps_are_those_of_timm(name):
    """Also at a size that is no multiple of the strides, if the network takes one; and folded for inference."""
    torch.manual_seed(0)
    backbone = TimmBackbone(name, {f"s{stride}": stride for stride in NETWORKS[name]}, norm="BN")
    theirs = timm.create_model(name, features_only=True, **({"dynamic_img_size": True} if name == "test_vit" else {}))
    theirs.load_state_dict(randomised(backbone).net.state_dict(), strict=False)
    theirs.eval()
    for size in ((96, 160), (97, 135) if backbone.size_divisibility == 0 else (64, 96)):
        x = torch.randn(1, 3, *size)
        with torch.no_grad():
            maps, folded, all_maps = backbone(x), optimize_for_inference(backbone)(x), theirs(x)
        wanted = {m.shape[-2:]: m for m in all_maps}  # of several of one size the last
        for stride, (key, m) in zip(NETWORKS[name], maps.items()):
            torch.testing.assert_close(m, wanted[torch.Size(-(-side // stride) for side in size)])
            assert backbone.output_shape()[key].channels == m.shape[1]
            torch.testing.assert_close(folded[key], m, rtol=1e-3, atol=1e-4 * m.abs().max().item())


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_trained_has_a_gradient(name):
    """And the other way round: of several processes each waits for the gradients of all that is trained."""
    for strides in (NETWORKS[name], NETWORKS[name][:1]):
        backbone = TimmBackbone(name, {f"s{stride}": stride for stride in strides}, norm="BN").eval()
        trained = {key for key, parameter in backbone.named_parameters() if parameter.requires_grad}
        backbone.requires_grad_(True)
        sum(m.sum() for m in backbone(torch.randn(1, 3, 64, 96)).values()).backward()
        assert trained == {key for key, parameter in backbone.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("name", ["test_efficientnet", "cspnext_tiny", "xception41p"])
def test_freezing_ends_at_a_map(name):
    """What the map of stride 4 comes from is frozen, and nothing else."""
    frozen = TimmBackbone(name, {"s4": 4, "s8": 8}, norm="BN", freeze_at=2)
    trained = TimmBackbone(name, {"s4": 4, "s8": 8}, norm="BN").eval()
    needed = []
    for key in ("s4", "s8"):
        trained.zero_grad()
        trained(torch.randn(1, 3, 64, 96))[key].sum().backward()
        needed.append({name for name, parameter in trained.named_parameters() if parameter.grad is not None})
    assert {key for key, parameter in frozen.named_parameters() if parameter.requires_grad} == needed[1] - needed[0]
    remaining = [key for key, m in frozen.named_modules() if isinstance(m, BATCH_NORMS)]
    assert remaining
    assert not any(f"{key}.weight" in needed[0] for key in remaining)


def test_frozen_norms_of_vectors():
    """The frozen form computes what the norm computes in eval mode."""
    norm = randomised(nn.BatchNorm1d(5))
    for x in (torch.randn(3, 5), torch.randn(3, 5, 7), torch.randn(3, 5, 7, requires_grad=True)):
        torch.testing.assert_close(freeze_norms(norm)(x), norm(x))


def test_maps_of_the_network_and_of_the_fpn_have_names_of_their_own():
    """Detectron2's FPN would make P6 of the network's map p5."""
    cfg = config("build_fcos_timm_fpn_backbone", "test_resnet", [8, 16])
    cfg.MODEL.TIMM.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["p3", "p4"]
    with pytest.raises(
        ValueError, match=r"MODEL.TIMM.OUT_FEATURES is \['p3', 'p4'\], but p2, p3, ... are maps of the FPN; use"
    ):
        build_backbone(cfg)


def test_a_model_that_cannot_be_built_says_why():
    cfg = config("build_timm_backbone", "pit_ti_224", [8, 16, 32])
    cfg.MODEL.META_ARCHITECTURE = "SparseInst"
    with pytest.raises(ConfigError, match="pit_ti_224 of timm cannot be a backbone, because it has no maps"):
        build(cfg)


def test_images_are_padded_as_the_network_wants_them():
    """Where the FPN alone would pad to less."""
    cfg = config("build_fcos_timm_fpn_backbone", "hrnet_w18_small", [8])
    assert build_backbone(cfg).size_divisibility == 32
