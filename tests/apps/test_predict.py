"""The demo as a user calls it: images, folders, globs, a video; broken files; wrong arguments; the files it writes."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from instseg_d2.apps import runs
from instseg_d2.apps.video import Video
from instseg_d2.commands import run
from tests.bright_spots import CLASS_NAMES, save_checkpoint, spots_clip, spots_config, spots_image
from tests.tiny import tiny_config

SCRIPT = Path(__file__).resolve().parents[2] / "projects" / "demo.py"
predict = functools.partial(run, "predict")


@pytest.fixture
def folder(tmp_path):
    """Three images, one of them without spots, a broken one and a text file."""
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(spots_image()).save(folder / "spots.png")
    Image.fromarray(np.rot90(spots_image()).copy()).save(folder / "turned.png")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "black.jpg")
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "notes.txt").write_text("not looked at")
    return folder


@pytest.fixture
def weights(tmp_path):
    return save_checkpoint(tmp_path / "spots.pth", spots_config(), CLASS_NAMES)


def _results(folder):
    return json.loads((folder / "results.json").read_text())


def test_folder_with_a_broken_image(folder, weights, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(["--weights", weights, "--input", str(folder), "--output", str(out), "--score-threshold", "0"]) == 0
    assert sorted(os.listdir(out)) == [
        "black.jpg",
        "images.json",
        "index.html",
        "results.json",
        "run.json",
        "spots.jpg",
        "turned.jpg",
    ]
    text = "".join(capsys.readouterr())
    (line,) = [line for line in text.splitlines() if "broken.jpg" in line]
    assert "skipped" in line
    assert "3 done, 1 skipped, 4 objects; medians: load" in text

    drawn = cv2.imread(str(out / "spots.jpg"))[..., ::-1].astype(int)
    difference = np.abs(drawn - spots_image()).max(axis=2)
    assert difference[12:28, 12:38].min() > 30
    assert difference[2:28, 44:78].max() < 20  # far from spots and tags: nothing but JPEG noise

    page = (out / "index.html").read_text()
    assert "spots.png" in page
    assert "1 blue spot, 1 red spot" in page
    assert "broken" not in page


def test_results_are_coco_results(folder, weights, tmp_path):
    out = tmp_path / "out"
    predict(["--weights", weights, "--input", str(folder), "--output", str(out), "--score-threshold", "0"])
    results = _results(out)
    assert [r["file_name"] for r in results] == ["spots.png"] * 2 + ["turned.png"] * 2
    assert {(r["category_id"], r["category_name"]) for r in results} == {(0, "red spot"), (1, "blue spot")}

    truth = COCO()
    truth.dataset = {
        "images": [{"id": r["image_id"], "height": 1, "width": 1} for r in results],
        "categories": [{"id": 0, "name": "red spot"}, {"id": 1, "name": "blue spot"}],
        "annotations": [],
    }
    truth.createIndex()
    detections = truth.loadRes(str(out / "results.json"))
    red, blue = detections.loadAnns(detections.getAnnIds(imgIds=results[0]["image_id"]))
    assert (detections.annToMask(red) == (spots_image()[..., 0] > 60)).all()
    assert (detections.annToMask(blue) == (spots_image()[..., 2] > 60)).all()
    assert red["bbox"] == [10, 10, 30, 20]
    assert red["score"] == pytest.approx(200 / 255, abs=1e-6)


def test_score_threshold_rules_pictures_and_results(folder, weights, tmp_path, capsys):
    out, spots = tmp_path / "out", str(folder / "spots.png")
    arguments = ["--weights", weights, "--input", spots, "--output", str(out), "--score-threshold"]
    assert predict([*arguments, "0.5"]) == 0
    assert [r["category_name"] for r in _results(out)] == ["red spot"]
    blue = cv2.imread(str(out / "spots.jpg"))[47:53, 52:68, ::-1].astype(int)
    assert np.abs(blue - (0, 0, 100)).max() < 40  # not drawn
    capsys.readouterr()
    assert predict([*arguments, "0.9"]) == 0
    assert _results(out) == []
    assert "Nothing reaches the score threshold of 0.9: the best score is 0.784." in "".join(capsys.readouterr())


def test_the_best_score_of_many_images_is_that_of_the_first(weights, tmp_path, capsys):
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(9):
        Image.fromarray(spots_image()).save(folder / f"{i}.png")
    words = ["--weights", weights, "--input", str(folder), "--output", str(tmp_path / "out"), "--score-threshold", "1"]
    assert predict(words) == 0
    assert "threshold of 1: the best score in the first 8 images is 0.784." in "".join(capsys.readouterr())


def test_nothing_found_at_all(folder, weights, tmp_path, capsys):
    assert predict(["--weights", weights, "--input", str(folder / "black.jpg"), "--output", str(tmp_path / "o")]) == 0
    assert "Nothing reaches the score threshold of 0.5: the model found nothing." in "".join(capsys.readouterr())


def test_explain(folder, weights, tmp_path, capsys):
    out = tmp_path / "out"
    assert predict(["--weights", weights, "--input", str(folder), "--output", str(out), "--explain"]) == 0
    explained = cv2.imread(str(out / "spots_explain.jpg"))
    assert explained.shape[1] > 2 * 320
    assert 'href="spots_explain.jpg"' in (out / "index.html").read_text()

    silent = save_checkpoint(tmp_path / "silent.pth", spots_config(explains=False), CLASS_NAMES)
    out = tmp_path / "silent"
    assert predict(["--weights", silent, "--input", str(folder), "--output", str(out), "--explain"]) == 0
    assert not list(out.glob("*_explain*"))
    assert "".join(capsys.readouterr()).count("Nothing to explain") == 1


def test_equal_names_do_not_overwrite_each_other(tmp_path, weights):
    for sub, scale in (("a", 1), ("b", 2)):
        (tmp_path / sub).mkdir()
        Image.fromarray(np.tile(spots_image(), (scale, 1, 1))).save(tmp_path / sub / "x.png")
    Image.fromarray(spots_image()).save(tmp_path / "a" / "x_explain.png")
    out = tmp_path / "out"
    arguments = ["--input", str(tmp_path / "a"), str(tmp_path / "b"), "--output", str(out), "--explain"]
    assert predict(["--weights", weights, *arguments, "--score-threshold", "0"]) == 0
    heights = {name: cv2.imread(str(out / name)).shape[0] for name in ("x.jpg", "x_explain_2.jpg", "x_2.jpg")}
    assert heights == {"x.jpg": 60, "x_explain_2.jpg": 60, "x_2.jpg": 120}
    names = [r["file_name"] for r in _results(out)]
    assert sorted(set(names)) == [os.path.join("a", "x.png"), os.path.join("a", "x_explain.png"), "b/x.png"]
    assert len(names) == 2 + 2 + 4


def test_max_images_and_overrides(folder, weights, tmp_path):
    out = tmp_path / "out"
    arguments = ["--input", str(folder / "*.png"), "--output", str(out), "--max-images", "1"]
    assert predict(["--weights", weights, *arguments, "INPUT.FORMAT", "RGB", "MODEL.DEVICE", "cpu"]) == 0
    assert sorted(os.listdir(out)) == ["images.json", "index.html", "results.json", "run.json", "spots.jpg"]
    assert [r["category_name"] for r in _results(out)] == ["red spot"]


def test_nothing_readable_is_exit_status_1(folder, weights, tmp_path, capsys):
    assert predict(["--weights", weights, "--input", str(folder / "broken.jpg"), "--output", str(tmp_path / "o")]) == 1
    assert "No image could be processed" in "".join(capsys.readouterr())


def test_video_in_video_out(weights, tmp_path):
    path, out = spots_clip(tmp_path / "clip"), tmp_path / "out"
    assert predict(["--weights", weights, "--input", path, "--output", str(out), "--score-threshold", "0.2"]) == 0
    written = out / os.path.basename(path)
    assert sorted(os.listdir(out)) == sorted([written.name, "index.html", "results.json"])
    video = Video(str(written))
    frames = list(video)
    assert len(frames) == video.count == video.read == 6
    assert video.fps == pytest.approx(12)
    original = list(Video(path))
    for index in (0, 5):
        difference = np.abs(frames[index].astype(int) - original[index]).max(axis=2)
        assert difference[14:26, 14 + 2 * index : 36 + 2 * index].mean() > 40
    results = _results(out)
    assert {r["image_id"] for r in results} == set(range(1, 7))
    assert {r["file_name"] for r in results} == {os.path.basename(path)}
    assert "<video" in (out / "index.html").read_text()


def test_video_limits_and_interruption(weights, tmp_path, monkeypatch):
    path, out = spots_clip(tmp_path / "clip"), tmp_path / "out"
    arguments = ["--weights", weights, "--input", path, "--output", str(out)]
    assert predict([*arguments, "--max-images", "2"]) == 0
    assert len(list(Video(str(out / os.path.basename(path))))) == 2

    calls = []

    def interrupted(*args, **kwargs):
        calls.append(0)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return args[0]

    monkeypatch.setattr(runs, "draw_instances", interrupted)
    assert predict(arguments) == 0
    assert len(list(Video(str(out / os.path.basename(path))))) == 3
    assert not list(out.glob("*.part*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--weights": "absent.pth"}, "absent.pth"),
        ({"--input": "absent/*.jpg"}, "absent/*.jpg: no such file, folder or registered data set"),
        ({"--config-file": "absent.yaml"}, "absent.yaml"),
        ({"--score-threshold": "50"}, "score threshold must be between 0 and 1; got 50"),
        ({"--max-images": "0"}, "at least 1"),
        ({"--batch": "0"}, "at a time must be at least 1; got 0"),
        ({"--shard": "3/2"}, "I/N with 1 <= I <= N, such as 1/4; got 3/2"),
        ({"--output": "{folder}"}, "would be overwritten"),
        ({"--output": "{folder}/notes.txt"}, "notes.txt"),
        ({"SOLVER.BASE_RL": "1"}, "SOLVER.BASE_LR"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_status_2(folder, weights, tmp_path, capsys, change, message):
    arguments = {"--weights": weights, "--input": str(folder), "--output": str(tmp_path / "out"), **change}
    words = [word.format(folder=folder) for pair in arguments.items() for word in pair]
    assert predict(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_folder_without_images_and_video_beside_images(folder, weights, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    path = spots_clip(tmp_path / "clip")
    common = ["--weights", weights, "--output", str(tmp_path / "out")]
    for words, message in (
        (["--input", str(tmp_path / "empty")], "no image in this folder"),
        (["--input", path, str(folder)], "a video must be the only input"),
        (["--input", path, "--explain"], "--explain works only on images"),
        (["--input", path, "--resume"], "--resume works only on images"),
        (["--input", path, "--shard", "1/2"], "--shard works only on images"),
    ):
        assert predict([*common, *words]) == 2
        assert message in capsys.readouterr().err


def test_debug_variable_shows_the_traceback(folder, weights, tmp_path, monkeypatch):
    monkeypatch.setenv("INSTSEG_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        predict(["--weights", weights, "--input", "absent.jpg", "--output", str(tmp_path / "out")])


def test_as_a_process_with_a_blendmask(folder, tmp_path):
    """The only test that starts Python: a random BlendMask whose checkpoint contains config and class names."""
    from detectron2.modeling import build_model

    cfg = tiny_config("BlendMask", "MODEL.FCOS.INFERENCE_TH_TEST", 0.0, "INPUT.MIN_SIZE_TEST", 160)
    data = {"model": build_model(cfg).state_dict(), "cfg": cfg.dump(), "class_names": ["a", "b", "c"]}
    torch.save(data, tmp_path / "blendmask.pth")
    command = [sys.executable, str(SCRIPT), "--weights", str(tmp_path / "blendmask.pth"), "--input", str(folder)]
    command += ["--output", str(tmp_path / "out"), "--score-threshold", "0", "--explain"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = _results(tmp_path / "out")
    assert results
    assert {r["category_name"] for r in results} <= {"a", "b", "c"}
    assert "Traceback" not in done.stdout + done.stderr
