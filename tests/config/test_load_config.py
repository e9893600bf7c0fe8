"""Integers for float keys, in files and overrides, and errors of files and overrides."""

import pytest

from instseg_d2.config import get_cfg, load_config
from instseg_d2.errors import ConfigError


def as_file(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("written", ["1", "-1", "'1'"])
def test_whole_numbers_for_real_keys_in_files(tmp_path, written):
    (tmp_path / "base.yaml").write_text(f"SOLVER:\n  BASE_LR: {written}\n  MAX_ITER: 5\n")
    cfg = load_config(as_file(tmp_path, f"_BASE_: base.yaml\nMODEL:\n  FCOS:\n    POS_RADIUS: {written}\n"))
    for value in (cfg.SOLVER.BASE_LR, cfg.MODEL.FCOS.POS_RADIUS):
        assert type(value) is float
        assert value == float(written.strip("'"))
    assert (cfg.SOLVER.MAX_ITER, type(cfg.SOLVER.MAX_ITER)) == (5, int)
    assert cfg.MODEL.FCOS.LOSS_GAMMA == get_cfg().MODEL.FCOS.LOSS_GAMMA


@pytest.mark.parametrize("written", [1, "1", "+1"])
def test_whole_numbers_for_real_keys_in_overrides(written):
    cfg = load_config("", ["SOLVER.BASE_LR", written, "SOLVER.MAX_ITER", "7", "MODEL.DEVICE", "cpu"])
    assert (cfg.SOLVER.BASE_LR, type(cfg.SOLVER.BASE_LR)) == (1.0, float)
    assert (cfg.SOLVER.MAX_ITER, type(cfg.SOLVER.MAX_ITER)) == (7, int)


def test_keys_without_a_type_take_whole_and_real_numbers(tmp_path):
    path = as_file(tmp_path, "MODEL:\n  EMBED_MASK:\n    BOX_PADDING: -1\n    MASK_TH: null\n")
    assert load_config(path).MODEL.EMBED_MASK.BOX_PADDING == -1
    assert load_config(path, ["MODEL.EMBED_MASK.BOX_PADDING", "0.1"]).MODEL.EMBED_MASK.BOX_PADDING == 0.1
    assert load_config(path, ["MODEL.EMBED_MASK.BOX_PADDING", "None"]).MODEL.EMBED_MASK.BOX_PADDING is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.BASE_LR", "True"),
        ("SOLVER.BASE_LR", "fast"),
        ("SOLVER.BASE_LR", "[1]"),
        ("SOLVER.MAX_ITER", "1.5"),
        ("SOLVER.MAX_ITER", "True"),
        ("MODEL.MASK_ON", "1"),
    ],
)
def test_other_types_stay_errors(tmp_path, key, value):
    with pytest.raises(ConfigError, match=f"command line.*{key}"):
        load_config("", [key, value])
    *nodes, name = key.split(".")
    text = "".join(f"{'  ' * depth}{node}:\n" for depth, node in enumerate(nodes))
    with pytest.raises(ConfigError, match=f"config.yaml.*{key}"):
        load_config(as_file(tmp_path, f"{text}{'  ' * len(nodes)}{name}: {value}\n"))


def test_overrides_in_their_order():
    assert load_config("", ["SOLVER.MAX_ITER", 3, "SOLVER.MAX_ITER", "4"]).SOLVER.MAX_ITER == 4


@pytest.mark.parametrize("key", ["SOLVER.MAX_ITR", "SOLVR.MAX_ITER", "SOLVER.MAX_ITER.X", "MODEL"])
def test_unknown_keys_in_overrides(key):
    with pytest.raises(ConfigError, match="command line"):
        load_config("", [key, 3])


def test_files_of_other_versions_go_through_detectron2(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.yaml: Cannot merge a v3 config into a v2 config"):
        load_config(as_file(tmp_path, "VERSION: 3\nSOLVER:\n  BASE_LR: 1.0\n"))
    old = as_file(tmp_path, "VERSION: 1\nMODEL:\n  WEIGHT: some.pkl\n")
    assert load_config(old).MODEL.WEIGHTS == "some.pkl"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("_BASE_: none.yaml", r"config\.yaml: .*none\.yaml: No such file or directory"),
        ("MODEL:\n  FCOS: {a\nX: [", r"config\.yaml, line 3: expected ',' or '}'"),
        ("MODEL: 1\n\tX: 2", r"config\.yaml, line 2: found character"),
        ("X: !!python/object:os.system 1", r"config\.yaml, line 1: could not determine a constructor"),
        ("_BASE_: broken.yaml", r"broken\.yaml, line 2: "),
        ("\x07", r"config\.yaml: it or its _BASE_ is not valid YAML \(unacceptable character"),
        ("", r"config\.yaml: it or its _BASE_ is not a YAML mapping of config keys"),
        ("- a", r"config\.yaml: it or its _BASE_ is not a YAML mapping of config keys"),
        ("plain text", r"config\.yaml: it or its _BASE_ is not a YAML mapping of config keys"),
        ("_BASE_: empty.yaml", r"config\.yaml: it or its _BASE_ is not a YAML mapping of config keys"),
        ("MODEL:", r"config\.yaml: MODEL is a section, not a value: set a key in it, as MODEL\.\w+\.$"),
        ("DATASETS:\n  TRAIN: a_train", r'config\.yaml: DATASETS\.TRAIN takes .* write one as \("a_train",\)\.$'),
        ("SOLVER:\n  MAX_ITER:\n    X: 3", r"SOLVER\.MAX_ITER is a value, not a section: it has no key X\.$"),
    ],
)
def test_broken_files_are_explained_in_a_line(tmp_path, text, message):
    (tmp_path / "empty.yaml").touch()
    (tmp_path / "broken.yaml").write_text("A: 1\nB: ]\n")
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(as_file(tmp_path, text))
    assert len(str(caught.value).replace(str(tmp_path), "")) < 150
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.FCOS", "3"], r"MODEL\.FCOS is a section, not a value: set a key in it, as MODEL\.FCOS\.\w+\.$"),
        (["solver.max_iter", "3"], r"no config key solver\. Did you mean SOLVER\?$"),
        (["MODEL.fcos.NUM_CLASSES", "3"], r"no config key MODEL\.fcos\. Did you mean MODEL\.FCOS\?$"),
        (["DATASETS.TRAIN", "shapes_train"], r'DATASETS\.TRAIN takes .* write one as \("shapes_train",\)\.$'),
        (["MODEL.RESNETS.OUT_FEATURES", "res5"], r'MODEL\.RESNETS\.OUT_FEATURES takes .* write one as \["res5"\]\.$'),
        (["SOLVER.STEPS", "100"], r"SOLVER\.STEPS takes several values: write one as \(100,\)\.$"),
        (["SOLVER.MAX_ITER.X", "3"], r"SOLVER\.MAX_ITER is a value, not a section: it has no key X\.$"),
        (["MODEL.DEVICE", "cpu", "--threshold", "0.3"], "^--threshold must come before the config overrides KEY VALUE"),
    ],
)
def test_unusable_overrides_are_explained(opts, message):
    with pytest.raises(ConfigError, match=message):
        load_config("", opts)
