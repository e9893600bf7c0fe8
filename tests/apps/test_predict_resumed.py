"""Runs that are killed and continued, shared out, or given other options: the same results."""

import json
import os
import shutil
import signal

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from instseg_d2.apps import runs
from instseg_d2.apps.predict import run_demo
from instseg_d2.errors import ConfigError, DatasetError
from instseg_d2.inference.predictor import Predictor
from tests.bright_spots import save_checkpoint, spots_config, spots_image
from tests.processes import forked

NAMES = ["a.png", "b.png", "c.png", "d.png", "sub/a.png"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "spots.pth", spots_config(), ["red", "blue"])


@pytest.fixture
def predictor(weights):
    return Predictor.from_checkpoint(weights)


@pytest.fixture
def images(tmp_path):
    """Five images with two spots each; c.png has none, and is wider."""
    folder = tmp_path / "in"
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.roll(spots_image(), number, 0) if name != "c.png" else np.zeros((60, 120, 3), np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def predict(predictor, folder, out, **options):
    return run_demo(predictor, [folder, folder / "sub"], out, score_threshold=0, **options)


def content(folder):
    """{name: bytes} of all files in a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def listed(folder, name="results"):
    return json.loads((folder / f"{name}.json").read_text())


def killed_in_a_picture(weights, number, folder, out):
    draw, drawn = runs.draw_instances, []

    def deadly(*args, **kwargs):
        drawn.append(0)
        if len(drawn) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(*args, **kwargs)

    runs.draw_instances = deadly
    predict(Predictor.from_checkpoint(weights), folder, out)


@pytest.mark.skipif(os.name == "nt", reason="has no SIGKILL")
def test_a_killed_run_keeps_its_results_and_is_continued(tmp_path, weights, predictor, images, caplog):
    out, whole = tmp_path / "out", tmp_path / "whole"
    assert forked(killed_in_a_picture, weights, 4, images, out)[0] == -signal.SIGKILL
    entries = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    done = {entry["file_name"] for entry in entries}
    assert {"a.png", "b.png"} <= done < set(NAMES)  # the third has no objects
    assert not (out / "results.json").exists()
    with caplog.at_level("INFO"):
        assert predict(predictor, images, out, resume=True)
    assert " images are done already." in caplog.text
    assert predict(predictor, images, whole)
    assert content(out) == content(whole)


@pytest.mark.parametrize("label_format", ["coco", "labelme", "label-studio", "png"])
def test_an_unfinished_image_is_processed_again(tmp_path, predictor, images, label_format):
    """A run may be killed between the results of an image and its entry, or within a line."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    predict(predictor, images, whole, label_format=label_format)
    shutil.copytree(whole, out)
    for name, lines in (("images", 1), ("results", 3)):
        text = (out / f"{name}.json").read_text().strip("[]\n").replace(",\n", "\n").splitlines()
        (out / f"{name}.jsonl").write_text("\n".join(text[:lines]) + "\n" + text[lines][:20])
        (out / f"{name}.json").unlink()
    (out / "b.jpg").unlink()
    assert predict(predictor, images, out, label_format=label_format, resume=True)
    assert content(out) == content(whole)


def test_a_finished_run_takes_up_new_and_mended_images(tmp_path, predictor, images, caplog):
    out = tmp_path / "out"
    (images / "b.png").write_bytes(b"broken")
    predict(predictor, images, out)
    assert [image["id"] for image in listed(out, "images") if "error" in image] == [2]
    for name in ("aa.png", "b.png"):
        Image.fromarray(spots_image()).save(images / name)
    caplog.clear()
    with caplog.at_level("INFO"):
        assert predict(predictor, images, out, resume=True)
    assert "4 images are done already." in caplog.text
    assert "2 done, 10 objects" in caplog.text  # in all
    # aa.png is the second now, but its number is taken: b.png would be the third, which is taken as well.
    ids = {image["file_name"]: image["id"] for image in listed(out, "images")}
    assert {name: ids[name] for name in ("a.png", "c.png", "d.png", "sub/a.png")} == dict(
        zip(("a.png", "c.png", "d.png", "sub/a.png"), (1, 3, 4, 5))
    )
    assert len(set(ids.values())) == 6
    assert all(ids[result["file_name"]] == result["image_id"] for result in listed(out))
    assert {"sub/a.png", "aa.png", "b.png"} <= {result["file_name"] for result in listed(out)}
    before = content(out)
    assert predict(predictor, images, out, resume=True)  # nothing is left to do
    assert content(out) == before


def test_fewer_images_first(tmp_path, predictor, images):
    """The first ones lie in one folder, all of them in two; names and ids do not depend on it."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    for limit in (1, 2, 4, 5):
        assert predict(predictor, images, out, max_images=limit, resume=limit > 1)
        assert [image["file_name"] for image in listed(out, "images")] == NAMES[:limit]
    predict(predictor, images, whole)
    assert content(out) == content(whole)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"score_threshold": 0.1}, "with another score threshold, 0 instead of 0.1: continue it with the same"),
        ({"pictures": False}, "with another pictures, True instead of False"),
        ({"polygons": True}, "with another polygons"),
        ({"label_format": "yolo"}, "with another label format, coco instead of yolo"),
        ({"explain": True}, "with another explain"),
    ],
)
def test_a_run_is_continued_with_its_settings(tmp_path, predictor, images, changed, message):
    out = tmp_path / "out"
    predict(predictor, images, out)
    before = content(out)
    with pytest.raises(ConfigError, match=message):
        run_demo(predictor, [images, images / "sub"], out, **{"score_threshold": 0, "resume": True, **changed})
    assert content(out) == before


def test_other_folders_and_lists_are_not_taken_for_the_same(tmp_path, predictor, images):
    out, other = tmp_path / "out", tmp_path / "other"
    predict(predictor, images, out)
    shutil.copytree(images, other)
    with pytest.raises(ConfigError, match="holds a run with another folder"):
        predict(predictor, other, out, resume=True)
    predict(predictor, images, tmp_path / "parts", shard=(1, 2))
    shutil.copy(images / "a.png", images / "aa.png")
    with pytest.raises(ConfigError, match="holds a run with another list of images"):
        predict(predictor, images, tmp_path / "parts", shard=(1, 2), resume=True)


def test_lists_of_another_program_are_not_continued(tmp_path, predictor, images):
    out = tmp_path / "out"
    out.mkdir()
    for text in ('[\n  {\n    "id": 1\n  }\n]', "hello\n", '{"a": [1,\n2]}\n'):
        (out / "images.json").write_text(text)
        with pytest.raises(DatasetError, match=r"images\.json is not a list of an earlier run: move it away"):
            predict(predictor, images, out, resume=True)
        assert (out / "images.json").read_text() == text


@pytest.mark.parametrize("batch", [2, 4])
def test_several_images_at_a_time_give_the_same_files(tmp_path, predictor, images, batch):
    one, several = tmp_path / "one", tmp_path / "several"
    predict(predictor, images, one, explain=True)
    predict(predictor, images, several, batch=batch, explain=True)
    assert content(several) == content(one)


def test_shards_together_are_the_whole(tmp_path, predictor, images):
    whole, out = tmp_path / "whole", tmp_path / "out"
    predict(predictor, images, whole)
    parts = [out / f"shard_{index}_of_3" for index in (1, 2, 3)]
    for index in (3, 1, 2):
        predict(predictor, images, out, shard=(index, 3))
    for name in ("images", "results"):
        joined = [entry for part in parts for entry in listed(part, name)]
        order = [json.dumps(entry) for entry in listed(whole, name)]
        assert sorted(json.dumps(entry) for entry in joined) == sorted(order)
    assert [[image["id"] for image in listed(part, "images")] for part in parts] == [[1, 4], [2, 5], [3]]


def test_polygons_have_the_pixels_of_the_masks(tmp_path, predictor, images):
    ring = spots_image()
    ring[15:20, 15:25] = 0  # a hole
    Image.fromarray(ring).save(images / "a.png")
    predict(predictor, images, tmp_path / "rle")
    predict(predictor, images, tmp_path / "polygons", polygons=True)
    pairs = list(zip(listed(tmp_path / "rle"), listed(tmp_path / "polygons")))
    assert len(pairs) == 8
    for expected, found in pairs:
        height, width = expected["segmentation"]["size"]
        assert all(isinstance(value, float) for part in found["segmentation"] for value in part)
        drawn = mask_util.decode(mask_util.merge(mask_util.frPyObjects(found["segmentation"], height, width)))
        assert (drawn == mask_util.decode(expected["segmentation"])).all()


def test_without_pictures(tmp_path, predictor, images):
    out = tmp_path / "out"
    assert predict(predictor, images, out, pictures=False)
    assert sorted(os.listdir(out)) == ["images.json", "results.json", "run.json"]
    assert listed(out, "images")[0] == {
        "id": 1,
        "file_name": "a.png",
        "width": 80,
        "height": 60,
        "objects": {"red": 1, "blue": 1},
    }
