"""COCO's metrics with faster-coco-eval are those of pycocotools, the oracle."""

import importlib.util
import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from instseg_d2.data import register_coco
from instseg_d2.evaluation.coco import CocoEvaluator

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


@pytest.mark.parametrize("cap", [4, 10, 100, 300])
@pytest.mark.parametrize("left_out", [0, 2])
def test_the_metrics_are_those_of_pycocotools(data, tmp_path, monkeypatch, cap, left_out):
    kept = dict(list(data.items())[left_out:])
    found, file = evaluated(kept, tmp_path / "fast", cap)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if "faster" in name else find(name))
    monkeypatch.setattr("instseg_d2.evaluation.coco._FastMatching", None)
    expected, expected_file = evaluated(kept, tmp_path / "slow", cap)
    assert file == expected_file
    for task in ("bbox", "segm"):
        assert found[task].keys() == expected[task].keys()
        assert 5 < expected[task]["AP"] < 95
        np.testing.assert_allclose(list(found[task].values()), list(expected[task].values()), atol=1e-9)


def test_only_without_matches_are_there_no_numbers(data, tmp_path):
    found, _ = evaluated({image: [] for image in data}, tmp_path, 100)
    assert np.isnan(found["bbox"]["AP"])


def test_it_is_used(data, tmp_path, monkeypatch):
    import faster_coco_eval

    calls, theirs = [], faster_coco_eval.COCOeval_faster.evaluate
    monkeypatch.setattr(faster_coco_eval.COCOeval_faster, "evaluate", lambda self: (calls.append(1), theirs(self)))
    evaluated(data, tmp_path, 300)
    assert len(calls) == 2
