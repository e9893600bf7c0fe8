"""The comparison as a user calls it: two methods trained on a few shapes, then compared again from their weights."""

import json

import cv2
import pytest
import torch

from instseg_d2.apps import compare as comparison
from instseg_d2.commands import parse
from instseg_d2.config import load_config
from instseg_d2.errors import ConfigError, DatasetError
from tests.scripts import ROOT, call, registered_shapes

DATA = "few_shapes_of_comparison"
CONFIGS = [str(ROOT / f"configs/quick/{name}_shapes.yaml") for name in ("sparseinst", "maskrcnn")]
SMALL = [
    "MODEL.DEVICE", "cpu",
    "MODEL.SPARSE_INST.ENCODER.NUM_CHANNELS", "16",
    "MODEL.SPARSE_INST.DECODER.GROUPS", "1",
    "MODEL.SPARSE_INST.DECODER.INST.DIM", "16",
    "MODEL.SPARSE_INST.DECODER.MASK.DIM", "16",
    "MODEL.ROI_BOX_HEAD.FC_DIM", "32",
    "INPUT.MIN_SIZE_TRAIN", "(96,)",
    "INPUT.MIN_SIZE_TEST", "96",
    "DATALOADER.NUM_WORKERS", "0",
    "SOLVER.IMS_PER_BATCH", "2",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    with registered_shapes(tmp_path_factory.mktemp("shapes"), **{f"{DATA}_train": 3, f"{DATA}_val": 4}):
        yield DATA


def test_two_methods(data, tmp_path):
    shared = ["--configs", *CONFIGS, "--data", data, "--images", "2", "--repeats", "2", "--score-threshold", "0.01"]
    trained, loaded = tmp_path / "trained", tmp_path / "loaded"
    call("compare", [*shared, "--train", "--iterations", "2", "--output", str(trained), *SMALL])
    content = json.loads((trained / "comparison.json").read_text())
    assert (content["data"], content["images"]) == (f"{data}_val", 4)
    for row, config, name in zip(content["models"], CONFIGS, ("sparseinst_shapes", "maskrcnn_shapes")):
        assert (row["config"], row["model"]) == (config, name)
        assert set(comparison.AP_COLUMNS) <= set(row)
        assert 0 <= row["AR@100"] <= 100
        assert row["training"].startswith("2 x 2, ")
        assert min(row[key] for key in ("GFLOPs", "latency, ms", "memory, MiB")) > 0
        state = torch.load(trained / name / "model_final.pth")["model"]
        buffers = ("running_mean", "running_var", "num_batches_tracked", "pixel_mean", "cell_anchors")
        assert row["parameters, M"] * 1e6 == sum(v.numel() for k, v in state.items() if not k.endswith(buffers))
        results = json.loads((trained / name / "inference" / "results.json").read_text())
        assert row["AP"] == results.get("segm", {}).get("AP")  # none where nothing was found
        assert row["AR@100"] == results["proposals"]["AR@100"]
    lines = (trained / "comparison.md").read_text().splitlines()
    assert sum(line.startswith(("| sparseinst_shapes", "| maskrcnn_shapes")) for line in lines) == 2
    picture = cv2.imread(str(trained / "pictures.jpg"))
    assert 3 * 260 < picture.shape[1] < 3 * 290  # the ground truth and two models

    files = [str(trained / name / "model_final.pth") for name in ("sparseinst_shapes", "maskrcnn_shapes")]
    call("compare", [*shared, "--weights", *files, "--output", str(loaded), *SMALL])
    again = json.loads((loaded / "comparison.json").read_text())["models"]
    for row, other in zip(content["models"], again):
        for key in (*comparison.AP_COLUMNS, "AR@100", "parameters, M", "GFLOPs"):
            assert row[key] == other[key]
        assert other["training"] == "model_final.pth"


def test_data_sets(data):
    assert comparison.find_data(data) == (f"{data}_train", f"{data}_val")
    assert comparison.find_data(f"{data}_val") == (None, f"{data}_val")
    with pytest.raises(DatasetError, match="no data set named few_shapes_of"):
        comparison.find_data("few_shapes_of")


def test_names():
    assert comparison.contender_names(["a/x.yaml", "a/y.yaml", "b/x.yaml"]) == ["a/x", "y", "b/x"]
    assert comparison.contender_names(["a/x.yaml", "a/y.yaml", "a/x.yaml"]) == ["a/x-1", "y", "a/x-2"]


def test_the_budget_keeps_the_schedule():
    schedule = ["SOLVER.MAX_ITER", 900, "SOLVER.STEPS", (600, 800), "SOLVER.FREEZE_NORMS_ITER", 700]
    cfg = load_config("", [*schedule, "SOLVER.FREEZE_BACKBONE_ITER", 100, "SOLVER.IMS_PER_BATCH", 2])
    cfg.merge_from_list(comparison._budget(cfg, 180))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS) == (90, (60, 80), 9)
    assert (cfg.SOLVER.FREEZE_NORMS_ITER, cfg.SOLVER.FREEZE_BACKBONE_ITER) == (70, 10)
    cfg = load_config("", ["SOLVER.MAX_ITER", 900, "SOLVER.IMS_PER_BATCH", 4])
    cfg.merge_from_list(comparison._budget(cfg, 180))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.FREEZE_NORMS_ITER) == (45, -1)
    cfg = load_config("", ["SOLVER.IMS_PER_BATCH", 4, "SOLVER.ACCUMULATE", 3, "SOLVER.PATIENCE", 5])
    cfg.merge_from_list(comparison._budget(cfg, 180))
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.PATIENCE) == (15, 0)


def test_mistakes(data, tmp_path):
    arguments = ["--configs", *CONFIGS, "--data", data, "--output", str(tmp_path)]
    with pytest.raises(ConfigError, match="--weights needs one file per config; got 1 for 2"):
        call("compare", [*arguments, "--weights", "a.pth"])
    with pytest.raises(ConfigError, match="must be at least 1"):
        call("compare", [*arguments, "--train", "--images", "0"])
    with pytest.raises(SystemExit):
        parse("compare", [*arguments, "--train", "--weights", "a.pth", "b.pth"])
    with pytest.raises(DatasetError, match=f"there is no training set {data}_val_train"):
        comparison.join("x", CONFIGS[0], (None, f"{data}_val"), str(tmp_path))
