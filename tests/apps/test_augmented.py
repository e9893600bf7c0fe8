"""A picture of training samples, instead of training."""

import os

import cv2
import numpy as np
import pytest

from instseg_d2.commands import parse
from instseg_d2.commands.train import work
from instseg_d2.errors import ConfigError
from tests.scripts import registered_shapes, restore_logging  # noqa: F401 (a fixture)


def test_the_picture_shows_the_samples(tmp_path, capsys):
    """Two samples side by side; nothing is trained."""
    with registered_shapes(tmp_path / "shapes", tiny_augmented=3):
        data = ["DATASETS.TRAIN", "('tiny_augmented',)", "DATASETS.TEST", "()", "MODEL.DEVICE", "cpu"]
        out = ["OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", "0", "SEED", "1"]
        work(parse("train", ["--config-file", "quick/blendmask_shapes", "--augmented", "2", *data, *out]))
    path = capsys.readouterr().out.splitlines()[-1]
    assert path == str(tmp_path / "out/augmented.jpg")
    picture = cv2.imread(path)
    assert picture.shape[1] == 3 * 10 + 2 * 320
    assert [np.ptp(half) > 100 for half in np.split(picture[30:], [335], axis=1)] == [True, True]
    assert not [file for file in os.listdir(tmp_path / "out") if file.endswith(".pth")]


def test_not_with_an_evaluation():
    with pytest.raises(ConfigError, match="--augmented is about training"):
        work(parse("train", ["--augmented", "5", "--eval-only"]))
