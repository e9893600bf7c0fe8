"""The authors' parameter lists load completely: nothing missing, nothing unexpected, shapes equal."""

import logging
import os
import re
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from instseg_d2.checkpoint import InstSegCheckpointer, checkpointer
from instseg_d2.checkpoint.authors import convert_state_dict
from instseg_d2.config import load_config
from tests.tiny import random_batch, tiny_model

CONFIGS = Path(__file__).parents[2] / "configs"
LISTS = {
    "blendmask_R_50.txt": "BlendMask/R_50_3x.yaml",
    "blendmask_RT_R_50_syncbn_shtw.txt": "BlendMask/RT_R_50_4x_syncbn_shtw.yaml",
    "blendmask_RT_R_50_bn-head.txt": "BlendMask/RT_R_50_4x_bn-head_syncbn_shtw.yaml",
    "blendmask_R_101_dcni3.txt": "BlendMask/R_101_dcni3_5x.yaml",
    "blendmask_Panoptic_R_50.txt": "BlendMask/Panoptic/R_50_3x.yaml",
    "blendmask_DLA_34.txt": "BlendMask/DLA_34_syncbn_4x.yaml",
    "sparseinst_r50_base.txt": "SparseInst/sparse_inst_r50_base.yaml",
    "sparseinst_r50_giam.txt": "SparseInst/sparse_inst_r50_giam.yaml",
    "sparseinst_r50_giam_soft.txt": "SparseInst/sparse_inst_r50_giam_soft.yaml",
    "sparseinst_r50_dcn_giam.txt": "SparseInst/sparse_inst_r50_dcn_giam_aug.yaml",
    "sparseinst_r50vd_giam.txt": "SparseInst/sparse_inst_r50vd_giam_aug.yaml",
    "sparseinst_r50vd_dcn_giam.txt": "SparseInst/sparse_inst_r50vd_dcn_giam_aug.yaml",
    "sparseinst_cspdarknet53.txt": "SparseInst/sparse_inst_cspdarknet53_giam.yaml",
    "sparseinst_pvt_b1.txt": "SparseInst/sparse_inst_pvt_b1_giam.yaml",
    "sparseinst_pvt_b2_li.txt": "SparseInst/sparse_inst_pvt_b2_li_giam.yaml",
    "istr_v1_R50.txt": "ISTR/ISTR-R50-3x.yaml",
    "istr_v2_PCA_R50.txt": "ISTR/ISTR-PCA-R50-3x.yaml",
    "istr_v2_AE_R50.txt": "ISTR/ISTR-AE-R50-3x.yaml",
}


def read_list(path):
    """name -> tensor of the listed shape with random numbers between 0.5 and 1.5."""
    parameters, generator = {}, torch.Generator().manual_seed(0)
    for line in path.read_text().splitlines():
        name, shape = re.fullmatch(r"(\S+) \((.*)\)", line).groups()
        parameters[name] = torch.rand([int(n) for n in shape.split(",") if n.strip()], generator=generator) + 0.5
    return parameters


def official_list(names):
    folder = os.environ.get("INSTSEG_OFFICIAL_PARAMETERS")
    if not folder:
        pytest.skip("INSTSEG_OFFICIAL_PARAMETERS names no folder of parameter lists")
    return read_list(Path(folder) / names)


@pytest.mark.parametrize(("names", "config"), LISTS.items())
def test_official_lists_load_completely(names, config, monkeypatch, caplog):
    official = official_list(names)
    cfg = load_config(str(CONFIGS / config), ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""])
    with torch.device("meta"):
        model = build_model(cfg)
    ours = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    converted = {k: tuple(v.shape) for k, v in convert_state_dict(official).items()}
    unused = [k for k in official if re.match(r"backbone\.bottom_up\.level[34]\.project\.", k)]  # of DLA-34
    assert len(converted) == len(official) - len(unused)
    # The public release carries no batch counters for some norms.
    ignored = {k for k in ours if k.endswith("num_batches_tracked")}
    assert {k: v for k, v in converted.items() if k not in ignored} == {
        k: v for k, v in ours.items() if k not in ignored
    }

    model.to_empty(device="cpu")
    monkeypatch.setattr(checkpointer, "read_weights", lambda path: {"model": dict(official)})
    monkeypatch.setattr(InstSegCheckpointer, "_local_path", lambda self, path: str(CONFIGS / config))
    with caplog.at_level(logging.DEBUG, logger="instseg_d2"):
        InstSegCheckpointer(model, for_test=True).load("official.pth")
    text = " ".join(record.getMessage() for record in caplog.records)
    counts = re.search(r"(\d+) of (\d+) weights loaded", text)
    assert counts[1] == counts[2]
    assert not any(word in text for word in ("missing", "not used", "another shape"))
    state = model.state_dict()
    for name, value in convert_state_dict(official).items():
        assert torch.equal(state[name], value.to(state[name].dtype)), name  # counters of batches are whole


def test_detectron2s_own_checkpointer_reads_the_authors_names(tmp_path):
    """DefaultPredictor and DefaultTrainer use it."""
    official = official_list("sparseinst_pvt_b1.txt")
    torch.save({"model": official}, tmp_path / "official.pth")
    cfg = load_config(str(CONFIGS / LISTS["sparseinst_pvt_b1.txt"]), ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""])
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(tmp_path / "official.pth"))
    state = model.state_dict()
    for name, value in convert_state_dict(official).items():
        assert torch.equal(state[name], value), name


def test_conversion_by_hand():
    official = {
        "proposal_generator.fcos_head.cls_tower.0.weight": torch.zeros(4, 4, 3, 3),
        "proposal_generator.fcos_head.cls_tower.0.bias": torch.zeros(4),
        "proposal_generator.fcos_head.cls_tower.1.weight": torch.zeros(4),
        "proposal_generator.fcos_head.cls_tower.3.conv.weight": torch.zeros(4, 4, 3, 3),
        "proposal_generator.fcos_head.cls_tower.3.offset.bias": torch.zeros(27),
        "proposal_generator.fcos_head.share_tower.1.2.running_mean": torch.zeros(4),
        "proposal_generator.fcos_head.share_tower.0.weight": torch.zeros(4, 4, 3, 3),
        "proposal_generator.fcos_head.bbox_pred.weight": torch.zeros(4, 4, 3, 3),
        "proposal_generator.fcos_head.centerness.bias": torch.zeros(1),
        "proposal_generator.fcos_head.scales.3.scale": torch.zeros(1),
        "basis_module.tower.0.0.weight": torch.zeros(4, 4, 3, 3),
        "basis_module.tower.2.1.running_var": torch.zeros(4),
        "basis_module.tower.3.bias": torch.zeros(4),
        "basis_module.seg_head.6.weight": torch.zeros(4, 4, 1, 1),
        "backbone.bottom_up.stem.conv1.weight": torch.zeros(4, 3, 7, 7),
    }
    assert list(convert_state_dict(official)) == [
        "proposal_generator.head.class_tower.blocks.0.conv.weight",
        "proposal_generator.head.class_tower.blocks.0.conv.bias",
        "proposal_generator.head.class_tower.blocks.0.norm.weight",
        "proposal_generator.head.class_tower.blocks.1.conv.weight",
        "proposal_generator.head.class_tower.blocks.1.offset.bias",
        "proposal_generator.head.shared_tower.blocks.0.level_norms.2.running_mean",
        "proposal_generator.head.shared_tower.blocks.0.conv.weight",
        "proposal_generator.head.box_distances.weight",
        "proposal_generator.head.quality_logits.bias",
        "proposal_generator.head.scales.3",
        "basis_module.tower.0.weight",
        "basis_module.upsampled_conv.norm.running_var",
        "basis_module.predictor.bias",
        "basis_module.semantic_head.2.weight",
        "backbone.bottom_up.stem.conv1.weight",
    ]


@pytest.mark.parametrize(("norm", "places"), [(True, 3), (False, 2)])
@pytest.mark.parametrize("missing", [None, 0, 1, 3])
def test_blocks_keep_their_numbers_where_one_lacks_its_convolution(norm, places, missing):
    head, ours = "proposal_generator.fcos_head.cls_tower", "proposal_generator.head.class_tower.blocks"
    official, expected = {}, []
    for block in range(4):
        if block != missing:
            official[f"{head}.{places * block}.weight"] = torch.zeros(4, 4, 3, 3)
            expected.append(f"{ours}.{block}.conv.weight")
        if norm:
            official[f"{head}.{places * block + 1}.weight"] = torch.zeros(4)
            expected.append(f"{ours}.{block}.norm.weight")
    assert list(convert_state_dict(official)) == expected


def test_own_checkpoints_stay_as_they_are():
    model = tiny_model("BlendMask")
    state = model.state_dict()
    assert list(convert_state_dict(state)) == list(state)
    assert model(random_batch([1]))
