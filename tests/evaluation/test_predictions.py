"""Predictions that were written before are evaluated as COCO's own code evaluates them."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from instseg_d2.apps.results import read_predictions
from instseg_d2.commands import run
from instseg_d2.data import make_shapes
from instseg_d2.evaluation.predictions import _Names


@pytest.fixture
def truth(tmp_path):
    """Twelve images of shapes, whose annotations have ids with gaps, in subfolders."""
    content = json.loads(Path(make_shapes(tmp_path / "shapes", "train", 12, 0)).read_text())
    images = {image["id"]: 10 * image["id"] + 7 for image in content["images"]}
    for image in content["images"]:
        image["id"] = images[image["id"]]
        image["file_name"] = f"{image['id'] % 2}/{image['file_name']}"
    for annotation in content["annotations"]:
        annotation["image_id"] = images[annotation["image_id"]]
        annotation["category_id"] *= 3
    for category in content["categories"]:
        category["id"] *= 3
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(content))
    return path


def predictions(truth, folder, generator):
    """Shifted objects with random scores, some of another class, as `instseg predict` writes them; COCO's ids apart."""
    coco = COCO(str(truth))
    names = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    images, results, own = [], [], []
    for number, image in enumerate(coco.loadImgs(coco.getImgIds()), 1):
        name = f"somewhere/{image['file_name']}"
        images.append({"id": number, "file_name": name, "width": image["width"], "height": image["height"]})
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask = np.roll(coco.annToMask(annotation), generator.integers(0, 6, 2), (0, 1))
            category = int(generator.choice(list(names))) if generator.random() < 0.2 else annotation["category_id"]
            code = coco_code(mask)
            entry = {"bbox": annotation["bbox"], "score": round(generator.random(), 6), "segmentation": code}
            results.append(
                {**entry, "image_id": number, "file_name": name, "category_id": 0, "category_name": names[category]}
            )
            own.append({**entry, "image_id": image["id"], "category_id": category})
    folder.mkdir()
    (folder / "images.json").write_text(lines(images))
    (folder / "results.json").write_text(lines(results))
    (folder / "run.json").write_text('{"folder": "/data/in"}')
    return coco, own


def coco_code(mask):
    code = mask_util.encode(np.asfortranarray(mask))
    return {"size": code["size"], "counts": code["counts"].decode()}


def lines(entries):
    return "[" + ",\n".join(map(json.dumps, entries)) + "]\n"


def test_the_metrics_are_coco_s(truth, tmp_path):
    coco, own = predictions(truth, tmp_path / "out", np.random.default_rng(0))
    words = ["--predictions", str(tmp_path / "out"), "--json", str(truth), "--output", str(tmp_path / "evaluation")]
    assert run("evaluate", words) == 0
    found = json.loads((tmp_path / "evaluation" / "results.json").read_text())
    for task in ("bbox", "segm"):
        # The area of an object is that of its mask, unless there is a box.
        kept = [{key: value for key, value in entry.items() if key != "bbox" or task == "bbox"} for entry in own]
        expected = COCOeval(coco, coco.loadRes(kept), task)
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
        assert 0.05 < expected.stats[0] < 0.95
        for name, index in (("AP", 0), ("AP50", 1), ("APm", 4)):
            assert found[task][name] == pytest.approx(100 * expected.stats[index], abs=1e-6)


def test_what_does_not_fit_is_one_sentence(truth, tmp_path, capsys):
    out = tmp_path / "out"
    predictions(truth, out, np.random.default_rng(0))
    words = ["--predictions", str(out), "--json", str(truth), "--output", str(tmp_path / "evaluation")]
    images, results = ((out / name).read_text() for name in ("images.json", "results.json"))

    def refused(message):
        capsys.readouterr()
        assert run("evaluate", words) == 2
        assert message in capsys.readouterr().err

    (out / "results.json").write_text(results.replace('"circle"', '"ellipse"'))
    refused("the predictions have the class ellipse, but ")
    (out / "results.json").write_text(results)
    first = json.loads(images)[0]
    (out / "images.json").write_text(lines([*json.loads(images), first]))
    refused(f"{first['file_name']}: this image has predictions twice")
    (out / "images.json").write_text(images.replace("somewhere/", "somewhere/x"))
    refused(" images with predictions, such as /data/in/somewhere/x")
    (out / "images.json").rename(out / "images.jsonl")
    refused("no predictions of a finished run (--resume continues one) in this folder")
    (out / "images.jsonl").unlink()
    refused("no predictions in this folder")
    for extra, message in ((["--data", "a"], "give one of them"), (["--config", "a"], "omit them")):
        capsys.readouterr()
        assert run("evaluate", [*words, *extra]) == 2
        assert message in capsys.readouterr().err
    assert run("evaluate", ["--predictions", str(out)]) == 2
    assert "--json FILE, or one --data NAME" in capsys.readouterr().err


def test_a_path_belongs_to_the_image_whose_name_ends_it():
    names = ("a/1.png", "1.png", "b/a/1.png", "c.png", "d/c.png")
    found = _Names([{"file_name": f"root/{name}", "image_id": name} for name in names], "root")
    for path, expected in (
        ("/x/a/1.png", "a/1.png"),
        ("/x/b/a/1.png", "b/a/1.png"),
        ("b/a/1.png", "b/a/1.png"),
        ("x/ba/1.png", "1.png"),
        ("s3://x/a/1.png", "a/1.png"),
        ("z\\a\\1.png", "a/1.png"),
        ("xc.png", None),
        ("d/c.png", "d/c.png"),
        ("2.png", None),
    ):
        assert found.find(path) == expected


def test_the_folder_of_the_images_is_part_of_their_paths(tmp_path):
    """The results name files from the folder that they share; the annotations may name them from further up."""
    (tmp_path / "run.json").write_text('{"folder": "/data/images"}')
    (tmp_path / "images.json").write_text(
        lines([{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png", "error": "x"}])
    )
    (tmp_path / "results.json").write_text(lines([{"image_id": 1, "file_name": "a.png"}]))
    assert list(read_predictions(str(tmp_path))) == [("/data/images/a.png", [{"image_id": 1, "file_name": "a.png"}])]
    assert _Names([{"file_name": "images/a.png", "image_id": 7}], ".").find("/data/images/a.png") == 7
