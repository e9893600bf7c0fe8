"""Objects that are followed: discs whose identity is known pass each other, hide, and come back."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from instseg_d2.apps.video import write_video
from instseg_d2.commands import run
from instseg_d2.visualization import draw_instances, instance_color
from instseg_d2.visualization.overlay import UNKNOWN
from tests.bright_spots import CLASS_NAMES, save_checkpoint, spots_config, spots_image

pytest.importorskip("trackers")
from instseg_d2.apps import tracking
from instseg_d2.apps.tracking import LOST, Tracker


def frame(*discs):
    """Detections (x, y, score) of discs of radius 10; the class is their true identity."""
    x, y, scores = torch.tensor(discs).reshape(-1, 3).T
    instances = Instances((200, 300), pred_boxes=Boxes(torch.stack([x - 10, y - 10, x + 10, y + 10], 1)))
    instances.scores, instances.pred_classes = scores, torch.arange(len(discs))
    return instances


def followed(frames, threshold=0.5):
    """For each frame {true identity: track id}."""
    tracker = Tracker(threshold)
    found = (tracker.update(instances) for instances in frames)
    return [dict(zip(x.pred_classes.tolist(), x.track_ids.tolist())) for x in found]


@pytest.mark.parametrize("distance", [14, 25])
def test_discs_that_pass_each_other_keep_their_ids(distance):
    frames = [frame((20 + 6 * t, 100, 0.9), (260 - 6 * t, 100 + distance, 0.8)) for t in range(40)]
    frames = [x[[1, 0]] if t % 3 == 0 else x for t, x in enumerate(frames)]  # the order says nothing
    first, *others = followed(frames)
    assert first == {0: 0, 1: 0}
    assert len({tuple(sorted(x.items())) for x in others}) == 1
    assert sorted(others[0].values()) == [1, 2]


def test_a_weak_detection_keeps_an_object_alive_but_is_none():
    scores = [0.9] * 5 + [0.3] * (LOST + 10) + [0.9] * 5
    found = followed([frame((20 + 2 * t, 100, score)) for t, score in enumerate(scores)])
    assert [list(x.values()) for x in found] == [[0], *[[1]] * 4, *[[]] * (LOST + 10), *[[1]] * 5]


@pytest.mark.parametrize(("gap", "same"), [(5, True), (LOST + 5, False)])
def test_an_object_that_comes_back(gap, same):
    still = frame((50, 50, 0.9))
    found = followed([still] * 5 + [still[:0]] * gap + [still] * 3)
    assert found[4] == {0: 1}
    assert found[-1] == {0: 1 if same else 2}


def test_nothing_to_follow():
    assert followed([frame()] * 3) == [{}] * 3
    tracker = Tracker(0.0)
    assert tracker.update(frame()).track_ids.dtype == torch.int64


def test_colours_and_numbers_belong_to_the_track():
    image = np.zeros((60, 80, 3), np.uint8)
    masks = torch.zeros(2, 60, 80, dtype=torch.bool)
    masks[0, 5:20, 5:20] = masks[1, 40:55, 50:70] = True
    instances = Instances((60, 80), pred_masks=masks, track_ids=torch.tensor([7, 0]), scores=torch.tensor([0.9, 0.8]))
    drawn = draw_instances(image, instances, alpha=1.0, labels=False)
    assert tuple(drawn[12, 12]) == instance_color(7)
    assert tuple(drawn[48, 60]) == UNKNOWN
    drawn = draw_instances(image, instances[1:], alpha=1.0, score_threshold=0.85)
    assert not drawn.any()


@pytest.mark.parametrize("batch", [1, 2])
def test_a_video_is_followed(tmp_path, batch):
    """A red and a blue disc that cross; their classes tell which is which."""
    frames = []
    for t in range(16):
        image = np.zeros((120, 160, 3), np.uint8)
        cv2.circle(image, (20 + 8 * t, 50), 14, (220, 0, 0), -1)
        cv2.circle(image, (140 - 8 * t, 74), 14, (0, 0, 220), -1)
        frames.append(image)
    clip = write_video(str(tmp_path / "clip"), frames, 10)
    weights = save_checkpoint(tmp_path / "spots.pth", spots_config(), CLASS_NAMES)
    arguments = ["--weights", weights, "--input", clip, "--output", str(tmp_path / "out"), "--batch", str(batch)]
    assert run("predict", [*arguments, "--track"]) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [x["image_id"] for x in results] == [i for i in range(1, 17) for _ in CLASS_NAMES]
    assert all("track_id" not in x for x in results[:2])
    ids = {name: {x["track_id"] for x in results[2:] if x["category_name"] == name} for name in CLASS_NAMES}
    assert sorted(map(list, ids.values())) == [[1], [2]]


def test_weak_detections_reach_the_tracker(tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "LOST", 3)
    frames = []
    for red in [200] * 4 + [100] * 8 + [200] * 4:
        frames.append(np.zeros((48, 64, 3), np.uint8))
        frames[-1][10:40, 10:40, 0] = red
    clip = write_video(str(tmp_path / "clip"), frames, 10)
    weights = save_checkpoint(tmp_path / "spots.pth", spots_config(), CLASS_NAMES)
    arguments = ["--weights", weights, "--input", clip, "--output", str(tmp_path / "out")]
    assert run("predict", [*arguments, "--track", "--score-threshold", "0.6"]) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [x["image_id"] for x in results] == [1, 2, 3, 4, 13, 14, 15, 16]
    assert [x.get("track_id") for x in results] == [None, *[1] * 7]


def test_the_package_may_be_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "trackers", None)
    weights = save_checkpoint(tmp_path / "spots.pth", spots_config(), CLASS_NAMES)
    clip = write_video(str(tmp_path / "clip"), [spots_image()] * 2, 10)
    arguments = ["--weights", weights, "--input", clip, "--output", str(tmp_path / "out"), "--track"]
    assert run("predict", arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --track needs the package trackers (")
    assert error.endswith("): pip install 'instseg_d2[track]', Python 3.10 or newer\n")
    assert error.count("\n") == 1
