"""The table of recipes: complete, consistent with the files, and the only place with published numbers."""

import re
from pathlib import Path

import pytest

from instseg_d2 import zoo
from instseg_d2.commands import run
from instseg_d2.config import load_config

CONFIGS = Path(__file__).parents[1] / "configs"
RECIPES = zoo.recipes()
STALE = "run `python -m instseg_d2.zoo --write`"


def test_every_recipe_is_in_the_table_and_nothing_else():
    files = [path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.rglob("*.yaml")]
    recipes = {path.as_posix() for path in files if not path.name.startswith("Base-") and path.parts[0] != "quick"}
    assert set(RECIPES) == recipes
    assert {name.split("/")[0] for name in RECIPES} == set(zoo.publications())


def test_values_are_of_known_columns():
    for name, row in RECIPES.items():
        assert list(row) == [column for column in zoo.COLUMNS if column in row], name
        for column, value in row.items():
            assert isinstance(value, str if column in ("note", "FPS") else float), (name, column)
            assert column in ("note", "FPS") or 0 < value < 400


def test_the_pages_show_the_table():
    """Every recipe of a method is once on its page."""
    shown = []
    for page, text in zoo.pages().items():
        assert page.read_text(encoding="utf-8") == text, f"{page} is stale: {STALE}"
        shown += [name for block in zoo.BLOCK.finditer(text) for name in re.findall(r"^\| (\S+/\S+) ", block[0], re.M)]
    assert sorted(shown) == sorted(name for name in RECIPES if not name.startswith("MaskRCNN-heads/"))


def test_published_numbers_stand_nowhere_else():
    """Neither in comments of recipes nor in the prose or hand-written tables of pages."""
    for path in CONFIGS.rglob("*.yaml"):
        comments = "".join(re.findall(r"#.*", path.read_text(encoding="utf-8")))
        assert not re.search(r"\b(AP|PQ|AR)\b", comments), path
    measures = [column for column in zoo.COLUMNS if re.search("AP|AR|PQ", column)]
    numbers = {str(row[column]) for row in RECIPES.values() for column in measures if column in row}
    for page, text in zoo.pages().items():
        prose = zoo.BLOCK.sub("", text)
        for line in prose.splitlines():
            cells = re.split(r"[|,]", line)
            named = any(re.search(rf"\b{re.escape(name.split('/')[-1])}\b", line) for name in RECIPES)
            assert not (named and numbers & {cell.strip() for cell in cells}), (page, line)


def test_a_stale_page_is_written(tmp_path, monkeypatch, capsys):
    """The text between the marks is replaced, the rest of the page stays."""
    page = tmp_path / "projects" / "FCOS" / "README.md"
    page.parent.mkdir(parents=True)
    page.write_text("before\n<!-- zoo: FCOS -->\nold\n<!-- /zoo -->\nafter ü\n", encoding="utf-8")
    monkeypatch.setattr(zoo, "ROOT", tmp_path)
    run("zoo", ["--write"])
    assert capsys.readouterr().out == f"{page} written\n"
    before, _, rest = page.read_text(encoding="utf-8").partition("<!-- zoo: FCOS -->\n")
    table, _, after = rest.partition("<!-- /zoo -->")
    assert (before, after) == ("before\n", "\nafter ü\n")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()]
    assert cells[0] == ["config", "note", "parameters, M", "box AP"]
    assert cells[2:] == [["FCOS/R_50_1x", "improved FCOS", "32.2", "38.7"]]
    run("zoo", ["--write"])
    assert capsys.readouterr().out == ""


def test_pages_are_written_in_a_checkout(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(zoo, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="run this in a checkout"):
        zoo.pages()
    assert run("zoo", ["--write"]) == 2
    assert "has no projects" in capsys.readouterr().err
    run("zoo", ["--method", "FCOS"])  # needs none


@pytest.mark.parametrize(
    "name", ["BlendMask/R_50_1x", "EmbedMask/v3_R_50_1x", "SparseInst/sparse_inst_r50_giam", "ISTR/ISTR-R50-3x"]
)
def test_sizes(name):
    assert zoo.count(name) == pytest.approx(RECIPES[name]["parameters, M"], abs=0.06)


def test_notes_on_the_input_are_those_of_the_recipes():
    for name, row in RECIPES.items():
        if pixels := re.match(r"(\d+) pixels", row.get("note", "")):
            assert load_config(str(CONFIGS / f"{name}.yaml")).INPUT.MIN_SIZE_TEST == int(pixels[1]), name


def test_the_tables(capsys):
    run("zoo", ["--method", "blendmask", "FCOS"])
    text = capsys.readouterr().out
    rows = {cells[1].strip(): cells for cells in (line.split("|") for line in text.splitlines()) if len(cells) > 3}
    assert [cell.strip() for cell in rows["BlendMask/R_50_1x"][3:6]] == ["36.0", "35.8", "39.9"]
    assert {"FCOS/R_50_1x", "BlendMask/Panoptic/R_50_3x"} <= set(rows)
    assert "ISTR" not in text
    assert "## BlendMask (CVPR 2020, arXiv 2001.00309)\n\nWeights: https://github.com/aim-uofa/AdelaiDet" in text
    with pytest.raises(SystemExit):
        run("zoo", ["--method", "yolact"])
    assert "yolact" in capsys.readouterr().err


def test_counting_anew(capsys):
    run("zoo", ["--count", "--method", "FCOS"])
    assert re.fullmatch(r"FCOS/R_50_1x 32\.\d\n", capsys.readouterr().out)
