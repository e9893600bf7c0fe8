"""`train --auto` on data of unusual kinds, without a word of configuration: it trains, evaluates and reports."""

import json

import numpy as np
import pytest

from instseg_d2.commands import run
from instseg_d2.config import load_config
from tests.coco_sets import rectangles, write_set
from tests.scripts import restore_logging  # noqa: F401 (a fixture)

SIZE = (200, 150)  # width, height


def lines():
    """Three objects of 3 x 120 or 120 x 3 pixels in each of six images."""
    rng = np.random.default_rng(0)
    sides = np.array([(3, 120), (120, 3)])[rng.integers(0, 2, 18)]
    return np.concatenate([rng.integers(0, np.array(SIZE) - sides + 1), sides], axis=1), 3


def one_that_fills_the_image():
    return np.array([(0, 0, *SIZE), (5, 5, 190, 140)] * 3), 1


def hundreds():
    """108 objects of 5 x 5 pixels in a part of each of two images."""
    places = np.stack(np.meshgrid(np.arange(12), np.arange(9)), axis=-1).reshape(-1, 2) * 10 + 2
    return np.concatenate([places, np.full((108, 2), 5)], axis=1)[list(range(108)) * 2], 108


def three_images():
    return rectangles(6, SIZE), 2


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        (lines, "--method embedmask"),
        (lines, "--config-file quick/maskrcnn_shapes"),
        (one_that_fills_the_image, "--method instancefcn"),
        (one_that_fills_the_image, "--method blendmask"),
        (hundreds, "--method sparseinst"),
        (three_images, "--method istr"),
    ],
)
def test_unusual_data(tmp_path, kind, base):
    boxes, per_image = kind()
    path, images = write_set(tmp_path, boxes, size=SIZE, per_image=per_image)
    out = tmp_path / "out"
    words = ["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(out), "SOLVER.MAX_ITER", "2"]
    data = ["--train-json", path, "--train-images", images]
    assert run("train", ["--auto", *base.split(), *data, *words, "TEST.PRECISE_BN.NUM_ITER", "2"]) == 0
    results = json.loads((out / "inference/results.json").read_text())
    assert "segm" in results or "proposals" in results or "bbox" in results
    cfg = load_config(str(out / "recipe.yaml"))
    crowded = kind is hundreds
    assert (cfg.INPUT.CROP.ENABLED, cfg.TEST.TILE.SIZE > 0) == (crowded, crowded)
