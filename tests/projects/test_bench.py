"""The benchmark: every method has a plain twin that goes through the same detection, and the stages are measured."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from instseg_d2.errors import ConfigError
from instseg_d2.inference.predictor import Predictor
from projects.benchmarks import runtimes
from projects.benchmarks.plain import fcos
from projects.benchmarks.rates import PlainConvolution
from projects.benchmarks.stages import STAGES, large_image_row, plain_model, stage_rows
from tests.scripts import ROOT
from tests.tiny import METHODS, random_batch, tiny_config, tiny_model


def test_the_script_works_from_any_folder(tmp_path):
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, ROOT / "projects/bench.py", "--help"], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: bench.py")


@pytest.mark.parametrize("name", [*METHODS, "FCOSDetector", "OneStageDetector"])
def test_stages(name, tmp_path, monkeypatch):
    if name == "OneStageDetector":  # what the authors call it
        model = tiny_model("FCOSDetector", "MODEL.META_ARCHITECTURE", name, finding=True).eval()
    else:
        model = tiny_model(name, finding=True).eval()
    path = str(tmp_path / "image.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 100, 3), np.uint8)).save(path)
    monkeypatch.setattr("projects.benchmarks.stages.autocast_type", lambda *_: torch.bfloat16)
    monkeypatch.setattr("projects.benchmarks.rates.HEIGHT", 1)  # quick
    headers, rows, rates = stage_rows(model, path, (64, 96), repeats=1)
    assert [row[0] for row in rows] == [*STAGES, "all"]
    assert headers == ["stage", "plain ms", "optimised ms", "ratio", "bfloat16 ms", "ratio"]
    assert all(len(row) == len(headers) and min(row[1:]) > 0 for row in rows)
    number = r"[\d.e+-]+"
    rate = rf"{number} GFLOP/s, \d+% of a 3x3 convolution's {number}"
    assert re.fullmatch(rf"network of {number} GFLOP; float32 {rate}; bfloat16 {rate}", rates)
    for column in (1, 2, 4):
        assert max(row[column] for row in rows[:-1]) <= rows[-1][column]


@pytest.mark.parametrize("with_quality", [True, False])
def test_fcos_equals_its_twin(with_quality):
    model = tiny_model(
        "FCOSDetector",
        "MODEL.FCOS.THRESH_WITH_CTR", with_quality,
        "MODEL.FCOS.PRE_NMS_TOPK_TEST", 50,
        "MODEL.FCOS.INFERENCE_TH_TEST", 0.001,
    ).eval()  # fmt: skip
    batch = random_batch([1, 1], 100, 120) + random_batch([0], 64, 160)
    batch[0].update(height=77, width=211)
    for output, wanted in zip(model.detect(batch), plain_model(model).detect(batch)):
        found, expected = output["instances"], wanted["instances"]
        assert len(found) == len(expected) > 10
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, rtol=0, atol=1e-3)
        assert torch.equal(found.pred_classes, expected.pred_classes)


def test_the_twin_is_asked(monkeypatch):
    """Not the model's own inference under another name."""
    asked = []
    monkeypatch.setattr(fcos, "plain_infer", lambda model, images: asked.append(model) or [])
    model = tiny_model("FCOSDetector").eval()
    assert plain_model(model).detect(random_batch([0])) == []
    assert asked == [model]


def test_rates():
    """Of a network that is nothing but the convolution to compare with."""
    convolution = PlainConvolution(torch.device("cpu"), torch.float32)
    with FlopCounterMode(display=False) as counter:
        convolution.layer(convolution.x)
    convolution.run()
    assert min(convolution.seconds) > 0
    convolution.seconds = [1, 2, 0.5]
    words = convolution.compare(counter.get_total_flops() / 1e9, [2, 3, 1])
    assert words == "float32 8 GFLOP/s, 50% of a 3x3 convolution's 16"


def test_a_large_image():
    model = tiny_model("SparseInst", finding=True).eval()
    count, peak, _ = large_image_row(model, count=5, size=(300, 400))
    assert count == 5
    assert peak > 300 * 400


def test_a_model_without_a_twin_is_named():
    with pytest.raises(ConfigError, match=r"GeneralizedRCNN has no plain version.*BlendMask, EmbedMask, FCOSDetector"):
        plain_model(tiny_model("MaskRCNN"))


def test_runtimes(tmp_path, monkeypatch):
    """One row for each runtime that is installed; a format that refuses the model is left out and named."""
    path = str(tmp_path / "image.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)).save(path)
    predictor = Predictor(tiny_config("BlendMask", finding=True), "")
    monkeypatch.setattr(runtimes, "installed", lambda: ["onnx", "openvino"])
    monkeypatch.setattr(runtimes, "autocast_type", lambda *_: torch.bfloat16)
    exported = []

    def export(predictor, format, **options):
        exported.append((format, options))
        if format == "openvino":
            raise ConfigError("not this one")
        return SimpleNamespace(save=lambda to: Path(to).write_bytes(b"12345"))

    monkeypatch.setattr(runtimes, "export", export)
    one = SimpleNamespace(preprocess=lambda *_: {}, run=lambda inputs: None)
    monkeypatch.setattr(runtimes, "ExportedPredictor", lambda path: one)
    rows = runtimes.runtime_rows(predictor, path, (64, 96), repeats=1)
    assert [row[0] for row in rows] == [
        "PyTorch float32",
        "PyTorch bfloat16",
        "ONNX Runtime",
        "ONNX Runtime 8 bits",
    ]
    assert rows[0][2] == 1
    options = [{"size": (64, 96), "masks": "crops", "calibration": x} for x in ([], [path] * 10)]
    assert exported == [(x, y) for x in ("onnx", "openvino") for y in options]
    assert rows[2][3] == rows[3][3] == 5e-6
