"""`instseg predict --tile`: as without tiles, and its errors."""

import json

import cv2
import numpy as np
import pytest

from instseg_d2.commands import run
from instseg_d2.errors import ConfigError
from instseg_d2.inference.predictor import Predictor
from instseg_d2.inference.tiles import TiledPredictor
from tests.bright_spots import CLASS_NAMES, save_checkpoint, spots_clip, spots_config, spots_image
from tests.tiny import tiny_config


@pytest.fixture
def predict(tmp_path):
    weights = save_checkpoint(tmp_path / "spots.pth", spots_config(), CLASS_NAMES)

    def predicted(path, name, *arguments):
        """The results of a run."""
        output = tmp_path / name
        command = ["--weights", weights, "--input", str(path), "--output", str(output), "--score-threshold", "0.1"]
        assert run("predict", [*command, *arguments]) == 0
        return json.loads((output / "results.json").read_text())

    return predicted


@pytest.mark.parametrize("batch", [1, 2])
def test_images_give_the_same_results(tmp_path, predict, batch):
    folder = tmp_path / "in"
    folder.mkdir()
    for factor in (1, 3, 4):
        image = np.repeat(np.repeat(spots_image(), factor, axis=0), factor, axis=1)
        cv2.imwrite(str(folder / f"{factor}.png"), image[..., ::-1])
    expected = predict(folder, "plain")
    assert len(expected) == 6
    tiles = ["--tile", "64", "--overlap", "0.3", "--batch", str(batch)]
    assert predict(folder, "tiles", *tiles) == expected
    # Without overlap the 3 x 4 tiles of the largest image cut both spots.
    assert len(predict(folder, "apart", "--tile", "64", "--overlap", "0", "--no-pictures")) > 6


def test_videos_give_the_same_results(tmp_path, predict):
    clip = spots_clip(tmp_path / "clip", size=(160, 120))
    expected = predict(clip, "plain")
    found = predict(clip, "tiles", "--tile", "100")
    assert [x["image_id"] for x in found] == [x["image_id"] for x in expected]
    assert [x["segmentation"] for x in found] == [x["segmentation"] for x in expected]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tile", "8"], "--tile is 8; a tile must have at least 32 pixels a side"),
        (["--tile", "640", "--overlap", "1"], "--overlap is 1; it must be a part of the tile from 0 to 0.75"),
        (["--overlap", "1"], "--overlap is 1; it must be a part of the tile from 0 to 0.75"),
    ],
)
def test_errors_come_before_the_model_is_loaded(tmp_path, capsys, arguments, message):
    cv2.imwrite(str(tmp_path / "image.png"), spots_image())
    command = ["--weights", str(tmp_path / "none.pth"), "--input", str(tmp_path / "image.png"), "--output", "out"]
    assert run("predict", command + arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_what_cannot_be_joined_is_refused():
    cfg = tiny_config("BlendMask")
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = True
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["p3", "p4"]
    cfg.MODEL.SEM_SEG_HEAD.COMMON_STRIDE = 8
    with pytest.raises(ConfigError, match="--tile cannot join a panoptic map, which this model predicts: omit --tile"):
        TiledPredictor(Predictor(cfg, optimize=False), 64)
