"""EmbedMask's released parameters load completely, in all three versions, and mean the same."""

import os
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from instseg_d2.checkpoint.authors import convert_state_dict
from instseg_d2.config import load_config
from tests.checkpoint.test_authors import CONFIGS, read_list


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
        "proposal_generator.head.box_tower.blocks.0.conv.weight",
        "proposal_generator.head.box_tower.blocks.0.norm.weight",
        "pixel_head.tower.blocks.0.conv.weight",
        "pixel_head.tower.blocks.0.offset.bias",
        "pixel_head.tower.blocks.0.norm.bias",
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
