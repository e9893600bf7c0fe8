"""How values of config keys are read, from a file and from the command line."""

import math

import pytest

from instseg_d2.commands import parse
from instseg_d2.config import check_config, get_cfg, get_value, home_expanded, load_config
from instseg_d2.errors import ConfigError
from tests.config.written import as_yaml, written_config

# Text in either place, and the value that it becomes.
MEANT = [
    ("SOLVER.MAX_ITER", "1e3", 1000),
    ("SOLVER.MAX_ITER", "1000.0", 1000),
    ("SOLVER.MAX_ITER", "10_000", 10000),
    ("SOLVER.BASE_LR", "1e-3", 0.001),
    ("SOLVER.BASE_LR", ".01", 0.01),
    ("SOLVER.BASE_LR", "1", 1.0),
    ("SOLVER.WARMUP_FACTOR", "0", 0.0),
    ("SOLVER.STEPS", "(600, 800)", (600, 800)),
    ("SOLVER.STEPS", "(6e2, 8e2)", (600, 800)),
    ("SOLVER.STEPS", "[600, 800.0]", (600, 800)),
    ("SOLVER.STEPS", "()", ()),
    ("SOLVER.WEIGHT_DECAY_BIAS", "1e-4", 1e-4),
    ("SOLVER.CLIP_GRADIENTS.NORM_TYPE", "inf", math.inf),
    ("SOLVER.WEIGHT_DECAY_NORM", "None", None),
    ("MODEL.MASK_ON", "true", True),
    ("MODEL.MASK_ON", "TRUE", True),
    ("MODEL.MASK_ON", "yes", True),
    ("MODEL.MASK_ON", "on", True),
    ("MODEL.FCOS.CENTER_SAMPLE", "false", False),
    ("MODEL.FCOS.CENTER_SAMPLE", "off", False),
    ("MODEL.EMBED_MASK.BOX_TO_MARGIN_BLOCK", "true", True),
    ("MODEL.EMBED_MASK.EMBED_DIM", "8", 8),
    ("OUTPUT_DIR", "2024", "2024"),
    ("OUTPUT_DIR", "2024_01", "2024_01"),
    ("OUTPUT_DIR", "2024-01-05", "2024-01-05"),
    ("OUTPUT_DIR", "007", "007"),
    ("OUTPUT_DIR", "1e3", "1e3"),
    ("OUTPUT_DIR", "0.10", "0.10"),
    ("OUTPUT_DIR", "yes", "yes"),
    ("OUTPUT_DIR", "'run 1'", "run 1"),
    ("MODEL.WEIGHTS", "None", ""),
    ("MODEL.WEIGHTS", "", ""),
    ("SOLVER.OPTIMIZER", "adamw", "adamw"),
    ("DATASETS.TRAIN", "[a, b]", ("a", "b")),
    ("DATASETS.TRAIN", "('a',)", ("a",)),
    ("DATASETS.TEST", "[]", ()),
    ("DATASETS.TEST", "None", ()),
    ("INPUT.MIN_SIZE_TRAIN", "(800.0,)", (800,)),
    ("INPUT.MIN_SIZE_TRAIN", "[640, 800]", (640, 800)),
    ("INPUT.CROP.SIZE", "(384, 600)", [384, 600]),
    ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[false, true, true, true]", [False, True, True, True]),
    ("MODEL.PIXEL_STD", "[1, 1, 1]", [1, 1, 1]),
]  # fmt: skip


@pytest.mark.parametrize("place", ["command line", "YAML"])
@pytest.mark.parametrize(("key", "written", "expected"), MEANT)
def test_what_is_converted(tmp_path, key, written, expected, place):
    cfg = written_config(tmp_path, place, key, written)
    value = get_value(cfg, key)
    assert value == expected
    assert type(value) is type(expected)
    check_config(cfg)
    # A run's own config.yaml means the same.
    (tmp_path / "dumped.yaml").write_text(cfg.dump())
    assert get_value(load_config(tmp_path / "dumped.yaml"), key) == expected


# Text in either place, and the error about its type, raised on reading.
UNREADABLE = [
    ("SOLVER.MAX_ITER", "1.5", r"SOLVER\.MAX_ITER takes a whole number; got 1\.5\.$"),
    ("SOLVER.MAX_ITER", "90k", r"SOLVER\.MAX_ITER takes a whole number; got 90k\.$"),
    ("SOLVER.MAX_ITER", "10,000", r"SOLVER\.MAX_ITER takes a whole number; got 10,000\. .*: write 10000\.$"),
    ("SOLVER.MAX_ITER", "inf", r"SOLVER\.MAX_ITER takes a whole number; got inf\.$"),
    ("SOLVER.MAX_ITER", "None", r"SOLVER\.MAX_ITER takes a whole number; got None\.$"),
    ("SOLVER.MAX_ITER", "True", r"SOLVER\.MAX_ITER takes a whole number; got True\.$"),
    ("SOLVER.BASE_LR", "0,001", r"SOLVER\.BASE_LR takes a number; got 0,001\. .*: write 0\.001\.$"),
    ("SOLVER.BASE_LR", "0,1", r"SOLVER\.BASE_LR takes a number; got 0,1\. .*: write 0\.1\.$"),
    ("SOLVER.BASE_LR", "fast", r"SOLVER\.BASE_LR takes a number; got fast\.$"),
    ("SOLVER.BASE_LR", "[0.1]", r"SOLVER\.BASE_LR takes a number; got \[0\.1\]\.$"),
    ("MODEL.MASK_ON", "1", r"MODEL\.MASK_ON takes True or False; got 1\.$"),
    ("MODEL.MASK_ON", "ture", r"MODEL\.MASK_ON takes True or False; got ture\.$"),
    ("DATASETS.TRAIN", "a_train", r'DATASETS\.TRAIN takes several values: write one as \("a_train",\)\.$'),
    ("DATASETS.TRAIN", "a, b", r'DATASETS\.TRAIN takes several values: write them as \("a", "b"\)\.$'),
    ("MODEL.FPN.IN_FEATURES", "res4", r'MODEL\.FPN\.IN_FEATURES takes several values: write one as \["res4"\]\.$'),
    ("INPUT.MIN_SIZE_TRAIN", "800", r"INPUT\.MIN_SIZE_TRAIN takes several values: write one as \(800,\)\.$"),
]  # fmt: skip


@pytest.mark.parametrize("place", ["command line", "YAML"])
@pytest.mark.parametrize(("key", "written", "message"), UNREADABLE)
def test_what_cannot_be_converted(tmp_path, key, written, message, place):
    with pytest.raises(ConfigError, match=f"{'command line' if place == 'command line' else 'mine.yaml'}: {message}"):
        written_config(tmp_path, place, key, written)


@pytest.mark.parametrize("key", ["OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.ISTR.PATH_COMPONENTS"])
def test_home(tmp_path, monkeypatch, key):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = str(tmp_path / "runs/a")
    (tmp_path / "mine.yaml").write_text(as_yaml(key, "~/runs/a"))
    assert get_value(load_config("~/mine.yaml"), key) == path
    assert get_value(load_config("", [key, "~/runs/a"]), key) == path
    cfg = get_cfg()
    cfg.merge_from_list([key, "~/runs/a"])
    cfg.freeze()
    expanded = home_expanded(cfg)
    assert get_value(expanded, key) == path
    assert expanded.is_frozen()
    assert get_value(cfg, key) == "~/runs/a"
    assert home_expanded(expanded) is expanded
    assert get_value(load_config("", [key, "a~/b"]), key) == "a~/b"


def test_numbers_as_written_in_a_base_file(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/base.yaml").write_text("OUTPUT_DIR: 2024_05\nMODEL:\n  WEIGHTS: 0010\n")
    (tmp_path / "mine.yaml").write_text("_BASE_: sub/base.yaml\nSOLVER:\n  MAX_ITER: 3\n")
    cfg = load_config(tmp_path / "mine.yaml")
    assert (cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS, cfg.SOLVER.MAX_ITER) == ("2024_05", "0010", 3)


@pytest.mark.parametrize(
    ("command", "words", "names"),
    [
        ("predict", ["--model", "~/a.pt2", "--input", "b", "--output", "c"], ["model"]),
        ("export", ["--format", "pt2", "--output", "~/a.pt2"], ["output"]),
        ("compare", ["--configs", "a", "--data", "b", "--output", "~/out"], ["output"]),
    ],
)
def test_home_in_options_that_no_function_expands(monkeypatch, command, words, names):
    monkeypatch.setenv("HOME", "/somewhere")
    args = parse(command, words)
    for name in names:
        assert getattr(args, name).startswith("/somewhere/")
