"""``instseg predict --format``: detections as labels that other programs open."""

import json
import shutil

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from instseg_d2.apps.convert import convert
from instseg_d2.commands import run
from tests.bright_spots import CLASS_NAMES, save_checkpoint, spots_clip, spots_config, spots_image


@pytest.fixture
def folder(tmp_path):
    """Two images with spots, one of them in a subfolder, and one without."""
    folder = tmp_path / "in"
    (folder / "süd ost").mkdir(parents=True)
    Image.fromarray(spots_image()).save(folder / "a.png")
    Image.fromarray(np.rot90(spots_image()).copy()).save(folder / "süd ost/a.png")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(folder / "black.png")
    return folder


@pytest.fixture
def predict(folder, tmp_path):
    weights = save_checkpoint(tmp_path / "spots.pth", spots_config(), CLASS_NAMES)

    def predict(*words, model=weights):
        common = ["--weights", model, "--output", str(tmp_path / "out"), "--score-threshold", "0"]
        return run("predict", [*common, "--input", str(folder / "**/*.png"), *words])

    return predict


@pytest.mark.parametrize("name", ["labelme", "yolo", "png"])
def test_labels_hold_the_detections(predict, folder, tmp_path, name):
    assert predict("--format", name) == 0
    out = tmp_path / "out"
    results = json.loads((out / "results.json").read_text())
    expected = {(r["file_name"], r["category_name"]): mask_util.decode(r["segmentation"]).tolist() for r in results}
    assert len(expected) == 4
    shutil.rmtree(tmp_path / "back", ignore_errors=True)
    convert(out / name, "coco", tmp_path / "back")
    content = json.loads((tmp_path / "back/annotations.json").read_text())
    files = {image["id"]: image for image in content["images"]}
    assert {image["file_name"] for image in files.values()} == {"a.png", "süd ost/a.png", "black.png"}
    names = {c["id"]: c["name"] for c in content["categories"]}
    assert names == dict(enumerate(CLASS_NAMES))
    found = {}
    for a in content["annotations"]:
        image, mask = files[a["image_id"]], a["segmentation"]
        if isinstance(mask, list):
            mask = mask_util.merge(mask_util.frPyObjects(mask, image["height"], image["width"]))
        found[image["file_name"], names[a["category_id"]]] = mask_util.decode(mask).tolist()
    assert found == expected


def test_label_studio_tasks(predict, tmp_path):
    assert predict("--format", "label-studio") == 0
    tasks = json.loads((tmp_path / "out/label-studio/tasks.json").read_text())
    found = {task["data"]["image"].split("=")[1]: task["predictions"][0]["result"] for task in tasks}
    assert set(found) == {"a.png", "black.png", "s%C3%BCd%20ost/a.png"}
    assert found["black.png"] == []
    red = next(r for r in found["a.png"] if r["value"]["polygonlabels"] == ["red spot"])
    points = np.array(red["value"]["points"]) / 100 * spots_image().shape[1::-1]
    assert [*points.min(0), *points.max(0)] == pytest.approx([10, 10, 40, 30], abs=0.01)
    assert red["score"] == pytest.approx(200 / 255, abs=1e-6)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("video", "--format yolo works only on images"),
        ("stems", "would share the label file a.txt: rename one of them"),
        ("names", "--format yolo needs the names of the classes, which this model does not know"),
    ],
)
def test_what_has_no_labels_stops_before_the_run(predict, folder, tmp_path, capsys, case, message):
    words, model = [], {}
    if case == "video":
        words = ["--input", spots_clip(tmp_path / "clip")]
    elif case == "stems":
        Image.fromarray(spots_image()).save(folder / "a.jpg")
        words = ["--input", str(folder)]
    else:
        model = {"model": save_checkpoint(tmp_path / "nameless.pth", spots_config(), None)}
    assert predict("--format", "yolo", *words, **model) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
