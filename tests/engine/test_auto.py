"""Recipes that configure themselves: the YAML file and the commands."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from instseg_d2.commands import parse, run
from instseg_d2.config import check_config, load_config
from instseg_d2.config.schedule import rescale
from instseg_d2.data import register_coco
from instseg_d2.engine import setup
from instseg_d2.engine.auto import auto_setup, make_plan
from instseg_d2.engine.auto.writing import nested, recipe_text
from instseg_d2.errors import ConfigError
from instseg_d2.methods import methods
from tests.coco_sets import rectangles, write_set
from tests.scripts import restore_logging  # noqa: F401 (a fixture)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Arguments that name ten images with three rectangles each."""
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "cache"))
    path, images = write_set(tmp_path, rectangles(30), per_image=3)
    return ["--train-json", path, "--train-images", images]


def test_reasons_are_comments():
    values = {"A.B": (1, 2), "A.C": "x: y", "D": 1e-5, "A.E.F": True, "A.G": []}
    text = recipe_text(["Head."], nested(values), {"A.B": "two: # numbers", "D": "long " * 30})
    assert text.splitlines() == [
        "# Head.", "A:", "  B: [1, 2]  # two: # numbers", "  C: 'x: y'", "  E:", "    F: true", "  G: []",
        "# " + ("long " * 23).strip(), "# " + ("long " * 7).strip(), "D: 1.0e-05",
    ]  # fmt: skip


RECIPES = {method.name: method.auto for method in methods() if method.auto and method.auto.small}
PHOTOS = [auto.photos for auto in RECIPES.values()]


@pytest.mark.parametrize("name", [*RECIPES, *PHOTOS, "MaskRCNN-heads/embed_mask_rcnn_R_50_FPN_1x"])
def test_round_trip(tmp_path, data, name):
    """The file has the decisions as values, is valid and builds the model; also for heads, by --config-file."""
    file, base = (
        str(tmp_path / "recipe.yaml"),
        ["--method", name.lower()] if name in RECIPES else ["--config-file", name],
    )
    if name in PHOTOS:
        pytest.importorskip("timm")
    words = ["MODEL.DEVICE", "meta", "SOLVER.STEPS", "(7, 9)", "SOLVER.MAX_ITER", "60"]
    args = parse("recipe", ["--output", file, *base, *data, *words])
    plan = make_plan(args, file)
    plan.write(file)
    cfg = load_config(file)
    check_config(cfg)
    for key, (value, reason) in plan.all_decisions().items():
        found = cfg
        for part in key.split("."):
            found = found[part]
        assert found == value or list(found) == list(value), key
        assert reason
    assert cfg.SOLVER.STEPS == (7, 9)
    assert cfg.SOLVER.WARMUP_ITERS == 10
    assert "STEPS: [7, 9]  # given on the command line" in Path(file).read_text()
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("custom_train",), ("custom_val",))
    parts = [json.loads(Path(files[0]).read_text()) for files in (cfg.DATASETS.TRAIN_FILES, cfg.DATASETS.TEST_FILES)]
    assert [len(part["images"]) for part in parts] == [8, 2]
    cfg.MODEL.WEIGHTS = ""
    with torch.device("meta"):
        build_model(cfg)


TINY = [
    "MODEL.FPN.OUT_CHANNELS", "16", "MODEL.BASIS_MODULE.CONVS_DIM", "16",
    "MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0",
    "TEST.REPORT", "False",
]  # fmt: skip


def test_train_auto_is_the_training_of_its_recipe(tmp_path, data, capsys):
    words = [*TINY, "OUTPUT_DIR", str(tmp_path / "out"), "SOLVER.MAX_ITER", "2"]
    assert run("train", ["--auto", "--method", "BlendMask", *data, *words]) == 0
    recipe = tmp_path / "out/recipe.yaml"
    trained = (tmp_path / "out/config.yaml").read_text()
    assert len(list(tmp_path.glob("out/recipe_split/*/val.json"))) == 1
    assert "custom_val" in trained
    log = (tmp_path / "out/log.txt").read_text()
    assert "Based on quick/Base-quick-blendmask: a small network, for CPUs, trained from scratch." in log
    assert setup(parse("train", ["--config-file", str(recipe)])).dump() == trained
    before = recipe.read_text()
    words = ["--auto", "--resume", "--method", "BlendMask", *data, "OUTPUT_DIR", str(tmp_path / "out")]
    assert run("train", words) == 0  # keeps the recipe, and has nothing to do
    assert recipe.read_text() == before
    assert (tmp_path / "out/config.yaml").read_text() == trained


def test_a_new_run_keeps_the_recipe_of_the_earlier_one(tmp_path, data, monkeypatch):
    """With the run's other files, before the new recipe is written."""
    out = tmp_path / "out"
    out.mkdir()
    for name in ("recipe.yaml", "config.yaml", "model_final.pth"):
        (out / name).write_text("earlier")
    words = [*data, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(out)]
    cfg = auto_setup(parse("train", ["--auto", "--method", "istr", *words]), 0.0)
    assert sorted(path.name for path in (out / "earlier").iterdir()) == [
        "config.yaml",
        "model_final.pth",
        "recipe.yaml",
    ]
    assert (out / "earlier/recipe.yaml").read_text() == "earlier"
    assert (out / "recipe.yaml").read_text().startswith("# Made by `instseg recipe` from quick/")
    assert cfg.OUTPUT_DIR == str(out)


def test_resuming_and_drawing_leave_a_run_alone(tmp_path, data):
    """A run without a recipe is not moved; with one, overrides count and OUTPUT_DIR is where the run is."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "last_checkpoint").write_text("model_final.pth")
    words = ["--auto", "--method", "istr", *data, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(out)]
    with pytest.raises(ConfigError, match=f"has no recipe.yaml: resume it with --config-file {out}/config.yaml"):
        auto_setup(parse("train", ["--resume", *words]), 0.0)
    assert [path.name for path in out.iterdir()] == ["last_checkpoint"]
    auto_setup(parse("train", ["--augmented", "2", *words]), 0.0)
    assert (out / "last_checkpoint").exists()
    assert not (out / "recipe.yaml").exists()
    moved = tmp_path / "moved"
    (out / "augmented.yaml").rename(out / "recipe.yaml")
    out.rename(moved)
    for file in moved.glob("recipe_split*"):
        file.rename(out.with_name(file.name))
    text = (moved / "recipe.yaml").read_text().replace(f"{out}/", f"{tmp_path}/")
    (moved / "recipe.yaml").write_text(text)
    words = [*words[:-1], str(moved), "SOLVER.MAX_ITER", "7", "DATASETS.TRAIN", "('auto_other',)"]
    cfg = auto_setup(parse("train", ["--resume", *words]), 0.0)
    assert (cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER, cfg.DATASETS.TRAIN) == (str(moved), 7, ("custom_train",))


def test_minutes_are_in_the_recipe(tmp_path, data, monkeypatch, capsys):
    """The schedule that `fit_to_minutes` makes replaces the rules'."""
    monkeypatch.setattr("instseg_d2.engine.auto.training.fit_to_minutes", lambda cfg, *_: rescale(cfg, 120))
    out = tmp_path / "mine.yaml"
    words = ["--output", str(out), "--method", "blendmask", "--minutes", "2", *data, "MODEL.DEVICE", "cpu"]
    assert run("recipe", words) == 0
    assert "MAX_ITER: 120  # for 2 minutes on this machine" in out.read_text()
    assert "WARMUP_ITERS: 20  # for 2 minutes on this machine" in out.read_text()
    shown = capsys.readouterr().out
    assert "10 images (0 without objects)" not in shown  # two of them are for validation
    assert "8 images (0 without objects)" in shown
    assert f"wrote {out}" in shown
    assert not Path("output/blendmask_auto").exists()


@pytest.mark.parametrize("method", ["blendmask", "sparseinst"])
def test_the_backbone_stays_frozen_as_long_as_asked(tmp_path, monkeypatch, method):
    """Whatever the rules and --minutes make of the schedule, also when a run is resumed that has no checkpoint yet."""

    def fitted(cfg, minutes, begun, resume, kept):
        return rescale(cfg, 2 * cfg.SOLVER.MAX_ITER, kept)

    monkeypatch.setattr("instseg_d2.engine.auto.training.fit_to_minutes", fitted)
    path, images = write_set(tmp_path, rectangles(480), per_image=120)  # for which SparseInst's batches are smaller
    words = ["--auto", "--method", method, "--freeze-backbone", "7", "--minutes", "2"]
    words += ["--train-json", path, "--train-images", images]
    words += ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "out"), "INPUT.CROP.ENABLED", "False"]
    cfg = auto_setup(parse("train", words), 0.0)
    assert cfg.SOLVER.MAX_ITER == (1200 if method == "blendmask" else 2400)
    assert cfg.SOLVER.FREEZE_BACKBONE_ITER == 7
    assert load_config(str(tmp_path / "out/recipe.yaml")).SOLVER.FREEZE_BACKBONE_ITER == 7
    assert auto_setup(parse("train", ["--resume", *words]), 0.0).SOLVER.FREEZE_BACKBONE_ITER == 7


def test_a_registered_set_with_its_validation_set(tmp_path, data):
    register_coco("auto_registered", data[1], data[3])
    words = ["DATASETS.TRAIN", "('auto_registered',)", "DATASETS.TEST", "('auto_registered',)"]
    plan = make_plan(parse("recipe", ["--output", "x", "--method", "istr", *words]), str(tmp_path / "x.yaml"))
    assert plan.data.num_images == 10
    assert plan.decisions["DATASETS.TRAIN"][0] == ("auto_registered",)
    assert not (tmp_path / "x_split").exists()


def test_a_split_replaces_a_given_set(tmp_path, data):
    """Trained on the other part, although the set was named among the overrides."""
    register_coco("auto_whole", data[1], data[3])
    words = ["DATASETS.TRAIN", "('auto_whole',)", "MODEL.DEVICE", "cpu"]
    plan = make_plan(parse("recipe", ["--output", "x", "--method", "istr", *words]), str(tmp_path / "x.yaml"))
    plan.write(tmp_path / "x.yaml")
    cfg = load_config(tmp_path / "x.yaml")
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("custom_train",), ("custom_val",))
    assert (cfg.MODEL.DEVICE, plan.data.num_images) == ("cpu", 8)


@pytest.mark.parametrize("test", ["('auto_test',)", "()"])
def test_a_given_test_set_is_kept(tmp_path, data, test):
    register_coco("auto_test", data[1], data[3])
    words = ["--output", "x", "--method", "istr", *data, "DATASETS.TEST", test]
    plan = make_plan(parse("recipe", words), str(tmp_path / "x.yaml"))
    assert plan.data.num_images == 10
    assert str(plan.decisions["DATASETS.TEST"][0]) == test


@pytest.mark.parametrize(("images", "parts"), [(1, [1]), (2, [1, 1]), (3, [2, 1])])
def test_few_images(tmp_path, data, images, parts):
    """Each part has at least one; a single image is not divided."""
    path, folder = write_set(tmp_path, rectangles(images), name="few")
    words = ["--output", "x", "--method", "sparseinst", "--train-json", path, "--train-images", folder]
    plan = make_plan(parse("recipe", words), str(tmp_path / "few.yaml"))
    plan.write(tmp_path / "few.yaml")
    cfg = load_config(tmp_path / "few.yaml")
    files = [files[0] for files in (cfg.DATASETS.TRAIN_FILES, cfg.DATASETS.TEST_FILES) if files]
    assert [len(json.loads(Path(file).read_text())["images"]) for file in files] == parts
    assert len(cfg.DATASETS.TEST) == len(parts) - 1


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        (
            "recipe",
            [],
            "a recipe needs a method to start from, or a --config-file: --method takes BlendMask, EmbedMask",
        ),
        ("recipe", ["--method", "yolo"], "there is no method yolo: --method takes BlendMask"),
        ("recipe", ["--method", "istr", "--config-file", "FCOS/R_50_1x"], "leave one of them out"),
        ("recipe", ["--method", "istr"], "a recipe needs data: give --train-json and --train-images"),
        (
            "recipe",
            ["--method", "istr", "--minutes", "1", "--num-gpus", "0", "--num-processes", "2"],
            "cannot measure 2 processes: leave --minutes out, or use `instseg train --auto --minutes`",
        ),
        ("recipe", ["--method", "istr", "SOLVER.MAX_ITR", "1"], "Did you mean SOLVER.MAX_ITER"),
        ("train", ["--auto", "--eval-only"], "--auto is about training"),
        ("train", ["--method", "istr"], "--method goes with --auto"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, capsys, command, words, message):
    output = ["--output", str(tmp_path / "x.yaml")] if command == "recipe" else []
    assert run(command, [*output, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_names_of_classes_do_not_break_a_recipe():
    reason = "the rarest class is 'a\nb\u2028c\x85d\x07: #e'"
    text = recipe_text([reason], {"SOLVER": {"MAX_ITER": 7}}, {"SOLVER.MAX_ITER": reason})
    assert yaml.safe_load(text) == {"SOLVER": {"MAX_ITER": 7}}
