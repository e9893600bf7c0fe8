"""EmbedMask's released parameters load completely, in all three versions, and mean the same."""

import logging
import os
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from instseg_d2.checkpoint import InstSegCheckpointer
from instseg_d2.checkpoint.authors import convert_state_dict
from instseg_d2.config import load_config
from instseg_d2.errors import CheckpointError
from tests.checkpoint.test_authors import CONFIGS, read_list
from tests.tiny import tiny_model


def v3_list():
    folder = os.environ.get("INSTSEG_OFFICIAL_PARAMETERS")
    if not folder:
        pytest.skip("INSTSEG_OFFICIAL_PARAMETERS names no folder of parameter lists")
    return read_list(Path(folder) / "embedmask_v3_R50.txt")


def other_version(official, version):
    """The list of v3 changed into that of an older version."""
    official = {name: value for name, value in official.items() if "margin_scales" not in name}
    if version == "v2":
        sizes = {"proposal_margin_pred": 1, "proposal_other_embed_pred": 6, "pixel_other_embed_pred": 6}
        for name, value in official.items():
            size = next((size for part, size in sizes.items() if part in name), None)
            official[name] = value if size is None else value[:size]
        return official
    official = {name: value for name, value in official.items() if "_embed_" not in name and "position" not in name}
    for name in ("proposal_embed_pred", "pixel_embed_pred"):
        official[f"rpn.head.{name}.weight"] = torch.zeros(32, 256, 3, 3)
        official[f"rpn.head.{name}.bias"] = torch.zeros(32)
    official["rpn.head.proposal_margin_pred.weight"] = torch.zeros(1, 4, 1, 1)
    official["rpn.head.proposal_margin_pred.bias"] = torch.zeros(1)
    return official


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_official_lists_load_completely(version):
    official = v3_list()
    if version != "v3":
        official = other_version(official, version)
    cfg = load_config(str(CONFIGS / f"EmbedMask/{version}_R_50_1x.yaml"), ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""])
    with torch.device("meta"):
        model = build_model(cfg)
    ours = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    converted = {name: tuple(value.shape) for name, value in convert_state_dict(official).items()}
    assert converted == ours
    joined = 0 if version == "v1" else 4  # weights and biases of two pairs of convolutions
    assert len(converted) == len(official) - joined


def test_conversion_by_hand():
    official = {
        "backbone.body.stem.conv1.weight": torch.ones(4, 3, 7, 7),
        "backbone.body.stem.bn1.running_var": torch.ones(4),
        "backbone.body.layer1.0.downsample.0.weight": torch.ones(4, 4, 1, 1),
        "backbone.body.layer1.0.downsample.1.running_var": torch.ones(4),
        "backbone.body.layer4.2.conv3.weight": torch.ones(4, 4, 1, 1),
        "backbone.body.layer4.2.bn3.bias": torch.ones(4),
        "backbone.fpn.fpn_inner2.weight": torch.ones(4, 4, 1, 1),
        "backbone.fpn.fpn_layer4.bias": torch.ones(4),
        "backbone.fpn.top_blocks.p7.bias": torch.ones(4),
        "rpn.head.cls_tower.0.weight": torch.ones(4, 4, 3, 3),
        "rpn.head.bbox_tower.3.weight": torch.ones(4, 4, 3, 3),
        "rpn.head.bbox_tower.4.weight": torch.ones(4),
        "rpn.head.mask_tower.9.conv.weight": torch.ones(4, 4, 3, 3),
        "rpn.head.mask_tower.9.offset.bias": torch.ones(27),
        "rpn.head.mask_tower.10.bias": torch.ones(4),
        "rpn.head.scales.2.scale": torch.ones(1),
        "rpn.head.margin_scales.4.scale": torch.ones(1),
        "rpn.head.position_scale.scale": torch.ones(1),
        "rpn.head.centerness.bias": torch.ones(1),
        "rpn.head.pixel_spatial_embed_pred.bias": torch.tensor([1.0, 2.0]),
        "rpn.head.pixel_other_embed_pred.bias": torch.tensor([3.0, 4.0, 5.0]),
    }
    converted = convert_state_dict(official)
    assert list(converted) == [
        "backbone.bottom_up.stem.conv1.weight",
        "backbone.bottom_up.stem.conv1.norm.running_var",
        "backbone.bottom_up.res2.0.shortcut.weight",
        "backbone.bottom_up.res2.0.shortcut.norm.running_var",
        "backbone.bottom_up.res5.2.conv3.weight",
        "backbone.bottom_up.res5.2.conv3.norm.bias",
        "backbone.fpn_lateral3.weight",
        "backbone.fpn_output5.bias",
        "backbone.top_block.p7.bias",
        "proposal_generator.head.class_tower.blocks.0.conv.weight",
        "proposal_generator.head.box_tower.blocks.1.conv.weight",
        "proposal_generator.head.box_tower.blocks.1.norm.weight",
        "pixel_head.tower.blocks.3.conv.weight",
        "pixel_head.tower.blocks.3.offset.bias",
        "pixel_head.tower.blocks.3.norm.bias",
        "proposal_generator.head.scales.2",
        "proposal_head.margin_scales.4",
        "position_scale",
        "proposal_generator.head.quality_logits.bias",
        "pixel_head.embedding.bias",
    ]
    # The two spatial dimensions come first; Detectron2's epsilon is out of the variance.
    assert converted["pixel_head.embedding.bias"].tolist() == [1, 2, 3, 4, 5]
    variance = torch.ones(4) - 1e-5
    assert torch.equal(converted["backbone.bottom_up.stem.conv1.norm.running_var"], variance)
    assert torch.equal(converted["backbone.bottom_up.res2.0.shortcut.norm.running_var"], variance)


def test_v1_names_by_hand():
    official = {
        "rpn.head.mask_tower.0.weight": torch.ones(4, 4, 3, 3),
        "rpn.head.proposal_embed_pred.weight": torch.full((32, 4, 3, 3), 2.0),
        "rpn.head.proposal_embed_pred.bias": torch.full((32,), 3.0),
        "rpn.head.pixel_embed_pred.weight": torch.full((32, 4, 3, 3), 4.0),
        "rpn.head.pixel_embed_pred.bias": torch.full((32,), 5.0),
        "rpn.head.proposal_margin_pred.weight": torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 4, 1, 1),
        "rpn.head.proposal_margin_pred.bias": torch.tensor([6.0]),
    }
    converted = convert_state_dict(official)
    assert {name: (tuple(value.shape), float(value.mean())) for name, value in converted.items()} == {
        "pixel_head.tower.blocks.0.conv.weight": ((4, 4, 3, 3), 1.0),
        "proposal_head.embedding.weight": ((32, 4, 3, 3), 2.0),
        "proposal_head.embedding.bias": ((32,), 3.0),
        "pixel_head.embedding.weight": ((32, 4, 3, 3), 4.0),
        "pixel_head.embedding.bias": ((32,), 5.0),
        "proposal_head.box_margin.weight": ((1, 4), 2.5),
        "proposal_head.box_margin.bias": ((1,), 6.0),
    }
    assert converted["proposal_head.box_margin.weight"].tolist() == [[1, 2, 3, 4]]  # left, top, right, bottom


@pytest.mark.parametrize(("version", "margins"), [("v2", 1), ("v3", 8)])
def test_v2_and_v3_names_by_hand(version, margins):
    official = {"rpn.head.mask_tower.0.weight": torch.ones(4, 4, 3, 3)}
    for place, start in (("proposal", 0.0), ("pixel", 8.0)):  # the other half first: order does not matter
        official[f"rpn.head.{place}_other_embed_pred.bias"] = torch.arange(start + 2, start + 8)
        official[f"rpn.head.{place}_spatial_embed_pred.bias"] = torch.arange(start, start + 2)
    official["rpn.head.proposal_margin_pred.weight"] = torch.ones(margins, 4, 3, 3)
    official["rpn.head.proposal_margin_pred.bias"] = torch.ones(margins)
    official["rpn.head.position_scale.scale"] = torch.ones(1)
    if version == "v3":
        official["rpn.head.margin_scales.0.scale"] = torch.ones(1)
    converted = convert_state_dict(official)
    expected = {
        "pixel_head.tower.blocks.0.conv.weight": (4, 4, 3, 3),
        "proposal_head.embedding.bias": (8,),
        "pixel_head.embedding.bias": (8,),
        "proposal_head.margin.weight": (margins, 4, 3, 3),
        "proposal_head.margin.bias": (margins,),
        "position_scale": (1,),
        **({"proposal_head.margin_scales.0": (1,)} if version == "v3" else {}),
    }
    assert {name: tuple(value.shape) for name, value in converted.items()} == expected
    assert converted["proposal_head.embedding.bias"].tolist() == list(range(8))
    assert converted["pixel_head.embedding.bias"].tolist() == list(range(8, 16))


def authors_file(path, version, without):
    """A file in the authors' names for the tiny model of a version, and that model; some keys left out."""
    model = tiny_model("EmbedMask", "MODEL.EMBED_MASK.VERSION", version)
    state = model.state_dict()
    official = {}
    for ours, theirs in (("class_tower", "cls_tower"), ("box_tower", "bbox_tower"), ("pixel_head.tower", "mask_tower")):
        prefix = ours if "." in ours else f"proposal_generator.head.{ours}"
        for index, layer in ((0, "conv"), (1, "norm")):
            for name in ("weight", "bias"):
                official[f"{theirs}.{index}.{name}"] = state.get(f"{prefix}.blocks.0.{layer}.{name}")
    for place in ("proposal", "pixel"):
        for name in ("weight", "bias"):
            value = state[f"{place}_head.embedding.{name}"]
            if version == "v1":
                official[f"{place}_embed_pred.{name}"] = value
            else:
                official[f"{place}_spatial_embed_pred.{name}"] = value[:2]
                official[f"{place}_other_embed_pred.{name}"] = value[2:]
    margin = "box_margin" if version == "v1" else "margin"
    for name in ("weight", "bias"):
        value = state[f"proposal_head.{margin}.{name}"]
        shape = (1, 4, 1, 1) if (version, name) == ("v1", "weight") else value.shape
        official[f"proposal_margin_pred.{name}"] = value.view(shape)
    official = {f"rpn.head.{key}": value for key, value in official.items() if value is not None}
    for key in without:
        del official[f"rpn.head.{key}"]
    torch.save({"model": official}, path)
    return model


@pytest.mark.parametrize(
    ("version", "without", "missing", "unused"),
    [
        ("v3", ["proposal_other_embed_pred.weight"], "proposal_head.embedding.weight", "rpn.head (1)"),
        ("v2", ["pixel_spatial_embed_pred.bias"], "pixel_head.embedding.bias", "rpn.head (1)"),
        ("v1", ["proposal_margin_pred.bias"], "proposal_head.box_margin.bias", ""),
        ("v1", ["proposal_margin_pred.weight"], "proposal_head.box_margin.weight", "proposal_head.margin (1)"),
    ],
)
def test_half_a_file_is_reported(tmp_path, caplog, version, without, missing, unused):
    path = str(tmp_path / "half.pth")
    model = authors_file(path, version, without)
    with caplog.at_level(logging.DEBUG, "instseg_d2"):
        InstSegCheckpointer(model).load(path)
    (report,) = (record.getMessage() for record in caplog.records if "weights loaded" in record.getMessage())
    (names,) = (record.getMessage() for record in caplog.records if "Weights missing" in record.getMessage())
    assert missing in names
    assert f"not used by this model: {unused}" in report if unused else "not used" not in report
    with pytest.raises(CheckpointError, match=r"half.pth lacks \d+ weights of the model"):
        InstSegCheckpointer(model, for_test=True).load(path)
