"""The table of recipes: complete, true to the files, filtered."""

import re
from pathlib import Path

import pytest

from instseg_d2 import zoo

CONFIGS = Path(__file__).parents[1] / "configs"
BY_NAME = {entry.config: entry for entry in zoo.ENTRIES}


def test_every_recipe_is_in_the_table_and_nothing_else():
    files = [path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.rglob("*.yaml")]
    recipes = {str(path) for path in files if not path.name.startswith("Base-") and path.parts[0] != "quick"}
    assert set(BY_NAME) == recipes
    assert len(BY_NAME) == len(zoo.ENTRIES)
    assert set(map(zoo.folder_of, zoo.ENTRIES)) == set(zoo.publications())


@pytest.mark.parametrize("name", BY_NAME)
def test_figures_are_those_that_the_recipe_names(name):
    """The comment at the head of a recipe and the table agree on every published mask AP, AR and PQ."""
    entry = BY_NAME[name]
    comments = " ".join(re.findall(r"^# ?(.*)", (CONFIGS / f"{name}.yaml").read_text(), re.M))
    published = re.search(r"Published(?: \(test-dev\))?: mask AP (\d+\.\d)(?:, box AP (\d+\.\d))?", comments)
    if published:
        on_test_dev = "test-dev" in comments
        mask, box = (None if value is None else float(value) for value in published.groups())
        assert (entry.test_dev if on_test_dev else entry.val) == (mask, box)
    elif "Published" not in comments:
        assert entry.val == entry.test_dev == (None, None)
        assert not entry.other
    for figure in re.findall(r"\d\d\.\d", " ".join(re.findall(r"Published: (?:AR|PQ).*", comments))):
        assert figure in entry.other


@pytest.mark.parametrize(
    "name", ["BlendMask/R_50_1x", "EmbedMask/v3_R_50_1x", "SparseInst/sparse_inst_r50_giam", "ISTR/ISTR-R50-3x"]
)
def test_sizes(name):
    assert zoo.count(BY_NAME[name]) == pytest.approx(BY_NAME[name].parameters, abs=0.06)


def test_every_size_is_known():
    assert all(10 < entry.parameters < 400 for entry in zoo.ENTRIES)
    assert BY_NAME["BlendMask/R_101_3x"].parameters - BY_NAME["BlendMask/R_50_3x"].parameters == pytest.approx(
        19, abs=0.2
    )


def test_the_table(capsys):
    assert zoo.main(["--method", "blendmask", "FCOS"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in lines) if len(cells) > 3}
    assert "35.8 / 39.9" in rows["BlendMask/R_50_1x"][3]
    assert "FCOS/R_50_1x" in rows
    assert not any("ISTR" in line for line in lines)
    assert any("github.com/aim-uofa/AdelaiDet" in line for line in lines)
    with pytest.raises(SystemExit):
        zoo.main(["--method", "yolact"])
    assert "yolact" in capsys.readouterr().err


def test_counting_anew(capsys, monkeypatch):
    monkeypatch.setattr(zoo, "ENTRIES", tuple(e._replace(parameters=0.0) for e in zoo.ENTRIES if "FCOS" in e.config))
    zoo.main(["--count"])
    assert re.search(r"FCOS/R_50_1x\s*\|\s*32\.\d", capsys.readouterr().out)
