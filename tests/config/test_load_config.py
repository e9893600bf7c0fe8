"""Whole numbers for real keys, in files and overrides, and what stays an error."""

import pytest

from instseg_d2.config import ConfigError, get_cfg, load_config


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
        ("MODEL.DEVICE", "0"),
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
