"""Recipes by their names, from any folder, and copies for editing."""

import pytest
import yaml
from detectron2.config import CfgNode

from instseg_d2.config import load_config
from instseg_d2.config.recipes import copy_recipe, find_recipe, recipe_folder, recipe_names
from instseg_d2.errors import ConfigError
from tests.scripts import ROOT


def test_the_checkout_has_them_where_they_are():
    assert recipe_folder() == ROOT / "configs"


@pytest.mark.parametrize("name", ["BlendMask/Panoptic/R_50_3x", "configs/BlendMask/Panoptic/R_50_3x"])
@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_a_name_from_any_folder(tmp_path, monkeypatch, name, suffix):
    """Its bases, here in the folder above, are found too."""
    monkeypatch.chdir(tmp_path)
    cfg = load_config(name + suffix)
    assert cfg == load_config(str(ROOT / "configs/BlendMask/Panoptic/R_50_3x.yaml"))
    assert (cfg.SOLVER.MAX_ITER, cfg.MODEL.FCOS.THRESH_WITH_CTR) == (270000, True)


@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_a_local_file_wins(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FCOS").mkdir()
    (tmp_path / "FCOS/R_50_1x.yaml").write_text("SOLVER:\n  MAX_ITER: 3\n")
    assert load_config(f"FCOS/R_50_1x{suffix}").SOLVER.MAX_ITER == 3


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("R_50_1x", "BlendMask/R_50_1x"), ("quick/blendmask", "quick/blendmask_shapes"), ("../setup", "")],
)
def test_a_wrong_name(tmp_path, monkeypatch, wrong, near):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(wrong) is None
    with pytest.raises(ConfigError, match=f"{wrong}: no such config file") as error:
        load_config(wrong)
    assert near in str(error.value)


def test_copies_mean_the_same(tmp_path):
    """All of them, as YAML; as configs, one of each depth of bases."""
    assert len(recipe_names()) > 60
    for name in recipe_names():
        copy = copy_recipe(name, tmp_path / f"{name}.yaml")
        values = CfgNode.load_yaml_with_base(find_recipe(name))
        with open(copy, encoding="utf-8") as file:
            assert yaml.safe_load(file) == values, name
    for name in (
        "quick/Base-quick",
        "ISTR/ISTR-R50-3x",
        "quick/blendmask_shapes",
        "SparseInst/sparse_inst_r50_giam_aug",
    ):
        assert load_config(tmp_path / f"{name}.yaml") == load_config(name)
