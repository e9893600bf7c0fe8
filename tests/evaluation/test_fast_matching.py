"""COCO's metrics with faster-coco-eval are those of pycocotools, the oracle."""

import json
import logging
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from instseg_d2.data import register_coco
from instseg_d2.evaluation import fast_matching
from instseg_d2.evaluation.coco import CocoEvaluator
from instseg_d2.evaluation.fast_matching import FastMatching

pytest.importorskip("faster_coco_eval")
SIZE = 128
IMAGES = range(3, 11)
CATEGORIES = (2, 5, 9)  # the last has no objects


def disc(x, y, radius):
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.asfortranarray((columns - x) ** 2 + (rows - y) ** 2 <= radius**2)


def code(mask):
    encoded = mask_util.encode(mask)
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def ring(x, y, radius):
    angles = np.linspace(0, 2 * np.pi, 17)[:-1]
    return [np.stack([x + radius * np.cos(angles), y + radius * np.sin(angles)], 1).round(2).ravel().tolist()]


@pytest.fixture
def data(tmp_path):
    """Polygons, run lengths and crowds, small to large; the last image has no objects. And detections near them."""
    random = np.random.default_rng(0)
    annotations, predictions = [], {image: [] for image in IMAGES}
    for image in list(IMAGES)[:-1]:
        for _ in range(random.integers(8, 20)):
            (x, y), radius = random.uniform(10, SIZE - 10, 2), random.choice([4.0, 12.0, 55.0], p=[0.5, 0.4, 0.1])
            mask, kind = disc(x, y, radius), random.choice(["polygon", "code", "crowd"], p=[0.6, 0.3, 0.1])
            category = int(random.choice(CATEGORIES[:2]))
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": category, "iscrowd": int(kind == "crowd"),
                "bbox": mask_util.toBbox(mask_util.encode(mask)).tolist(), "area": float(mask.sum()),
                "segmentation": ring(x, y, radius) if kind == "polygon" else code(mask),
            })  # fmt: skip
            for _ in range(random.integers(0, 3)):
                found = disc(x + random.normal(), y + random.normal(), radius + random.normal())
                predictions[image].append({
                    "image_id": image, "category_id": CATEGORIES.index(category if random.random() < 0.8 else 9),
                    "score": round(random.random(), 1), "segmentation": code(found),  # with equal scores
                    "bbox": mask_util.toBbox(mask_util.encode(found)).tolist(),
                })  # fmt: skip
    predictions[IMAGES[-1]].append(dict(predictions[IMAGES[0]][0], image_id=IMAGES[-1]))
    predictions[IMAGES[2]] = []
    images = [{"id": i, "file_name": f"{i}.png", "height": SIZE, "width": SIZE} for i in IMAGES]
    categories = [{"id": i, "name": f"class {i}"} for i in CATEGORIES]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (tmp_path / "val.json").write_text(json.dumps(content))
    register_coco("toy_matching", tmp_path / "val.json", tmp_path)
    DatasetCatalog.get("toy_matching")
    yield predictions
    DatasetCatalog.remove("toy_matching")
    MetadataCatalog.pop("toy_matching")


def evaluated(predictions, folder, cap):
    evaluator = CocoEvaluator("toy_matching", output_dir=str(folder), max_dets_per_image=cap, use_fast_impl=False)
    evaluator.reset()
    evaluator.add(json.loads(json.dumps(predictions), object_hook=_numbers))
    results = evaluator.evaluate()
    return results, json.loads((folder / "coco_instances_results.json").read_text())


def _numbers(entry):
    return {int(key) if key.isdigit() else key: value for key, value in entry.items()}


@pytest.fixture
def calls(monkeypatch):
    """One entry for each task that faster-coco-eval matched."""
    found, theirs = [], FastMatching.evaluate
    monkeypatch.setattr(FastMatching, "evaluate", lambda self: (found.append(self.params.iouType), theirs(self)))
    return found


def equal(found, expected):
    assert found.keys() == expected.keys()
    for task in expected:
        assert found[task].keys() == expected[task].keys()
        np.testing.assert_allclose(list(found[task].values()), list(expected[task].values()), atol=1e-9)


def slow(monkeypatch):
    monkeypatch.setattr(fast_matching, "_package", lambda: None)


@pytest.mark.parametrize("cap", [4, 10, 100, 300])
@pytest.mark.parametrize("left_out", [0, 2])
def test_the_metrics_are_those_of_pycocotools(data, tmp_path, monkeypatch, calls, cap, left_out):
    kept = dict(list(data.items())[left_out:])
    found, file = evaluated(kept, tmp_path / "fast", cap)
    assert calls == ["bbox", "segm"]
    slow(monkeypatch)
    expected, expected_file = evaluated(kept, tmp_path / "slow", cap)
    assert len(calls) == 2
    assert file == expected_file
    assert 5 < expected["bbox"]["AP"] < 95
    assert 5 < expected["segm"]["AP"] < 95
    equal(found, expected)


def changed(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def large_ids(content):
    for entry in content["annotations"]:
        entry["id"] += 900100000000  # COCO's crowds have such ids


def test_large_ids_of_annotations(data, tmp_path, monkeypatch, calls):
    changed(Path(MetadataCatalog.get("toy_matching").json_file), large_ids)
    found, _ = evaluated(data, tmp_path / "fast", 100)
    assert len(calls) == 2
    slow(monkeypatch)
    equal(found, evaluated(data, tmp_path / "slow", 100)[0])


def negative_ids(content):
    for entry in content["annotations"]:
        entry["id"] = -entry["id"]


def real_sizes(content):
    for image in content["images"]:
        image["height"] = float(image["height"])


def not_a_number(data):
    data[IMAGES[0]][0]["score"] = float("nan")


@pytest.mark.parametrize("change", [negative_ids, real_sizes, not_a_number])
def test_pycocotools_does_the_rest(data, tmp_path, calls, change):
    """Data for which faster-coco-eval fails, or has other numbers."""
    file = Path(MetadataCatalog.get("toy_matching").json_file)
    change(data) if change is not_a_number else changed(file, change)
    assert evaluated(data, tmp_path, 100)[0]["segm"]["AP"] > 5
    assert not calls


def test_a_package_that_does_not_load_is_named(data, tmp_path, monkeypatch, caplog, calls):
    broken = tmp_path / "faster_coco_eval"
    broken.mkdir()
    (broken / "__init__.py").write_text("raise ValueError('numpy.dtype size changed')")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.startswith("faster_coco_eval")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(fast_matching, "_package", fast_matching._package.__wrapped__)
    with caplog.at_level(logging.WARNING):
        assert evaluated(data, tmp_path / "out", 100)[0]["segm"]["AP"] > 5
    assert "since faster-coco-eval does not load: numpy.dtype size changed" in caplog.text
    assert not calls


def test_an_unknown_class_is_named(data, tmp_path):
    data[IMAGES[0]][0]["category_id"] = 7
    with pytest.raises(AssertionError, match="A prediction has class=7"):
        evaluated(data, tmp_path, 100)


def test_no_detections(data, tmp_path):
    found, _ = evaluated({image: [] for image in data}, tmp_path, 100)
    assert np.isnan(found["bbox"]["AP"])


def test_detections_that_match_nothing(data, tmp_path, calls):
    kept = {image: [] for image in data} | {IMAGES[-1]: data[IMAGES[-1]]}
    found, _ = evaluated(kept, tmp_path, 100)
    assert (found["segm"]["AP"], found["bbox"]["AP"]) == (0, 0)
    assert len(calls) == 2
