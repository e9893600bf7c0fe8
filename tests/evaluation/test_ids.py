"""Ids of every kind: no object is lost in an evaluation, and results have the ids of the annotation file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image

from instseg_d2.config import get_cfg
from instseg_d2.data import build_test_loader, check_images, register_coco
from instseg_d2.data.coco import class_information, class_names
from instseg_d2.errors import DatasetError
from instseg_d2.evaluation import PanopticQualityEvaluator, ProposalRecallEvaluator, build_evaluator, evaluate
from tests.coco_sets import SIZE, rectangles, write_set

NUMBER = 5
BOXES = rectangles(NUMBER)
IDS = {
    "plain": [1, 2, 3, 4, 5],
    "with gaps": [70, 3, 9, 12, 100],
    "from 0": [0, 1, 2, 3, 4],
    "negative": [-5, -1, 3, 0, 2],
    "of 63 bits": [2**62, 2**62 + 1, 2**62 + 2, 2**62 + 3, 7],
    "of 64 bits": [2**63 + 3, 2**64 - 1, 2**63 + 4, 2**63, 2**63 + 2],
    "of 64 bits and small": [9223372036854788153, 7000000000000000123, 9223372036854788154, 1, 2],
    "hashes": [10**30, 10**30 + 1, 3, 4, 5],
    "real": [1.0, 2.0, 3.0, 4.0, 5.0],
    "broken": [0.5, 1.5, 2.5, -1.5, 3.0],
    "large reals": [1e17, 2e17, 3e300, 4e17, 5.0],
    "number texts": ["1", "2", "3", "10", "9"],
    "zeros before": ["0001", "0002", "0010", "0003", "0100"],
    "texts": ["a", "b", "c", "image 7", ""],
    "numbers and texts": [1, "a", 2, "b", 3.5],
    "numbers and number texts": [1, "2", 3, "4", 5.0],
    "a number and its text": [1, "1", 2, "2", "01"],
    "unicode": ["ä", "\u00e9", "e\u0301", "图", "1"],
}


class Oracle(torch.nn.Module):
    """Finds all objects, by the file name."""

    def forward(self, batch):
        names = MetadataCatalog.get("toy_ids_val").thing_classes
        in_order, outputs = names != ["b", "a"], []
        for sample in batch:
            number = int(Path(sample["file_name"]).stem)
            x, y, w, h = BOXES[number].tolist()
            found = Instances((SIZE[1], SIZE[0]))
            found.pred_boxes = Boxes(torch.tensor([[x, y, x + w, y + h]], dtype=torch.float32))
            found.scores = torch.ones(1)
            found.pred_classes = torch.tensor([number % 2 if in_order else 1 - number % 2])
            found.pred_masks = torch.zeros(1, SIZE[1], SIZE[0], dtype=torch.bool)
            found.pred_masks[0, y : y + h, x : x + w] = True
            outputs.append({"instances": found})
        return outputs


@pytest.fixture
def registered(monkeypatch, tmp_path):
    monkeypatch.setenv("INSTSEG_CACHE", str(tmp_path / "cache"))
    yield lambda files: register_coco("toy_ids_val", *files)
    DatasetCatalog.pop("toy_ids_val", None)
    MetadataCatalog.pop("toy_ids_val", None)


def run(folder, evaluator=None):
    cfg = get_cfg()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TEST = SIZE[1]
    evaluator = evaluator or build_evaluator(cfg, "toy_ids_val", str(folder))
    return evaluate(Oracle(), build_test_loader(cfg, "toy_ids_val"), evaluator, "toy_ids_val")


def with_ids(folder, images=None, categories=None, annotations=None, other_way=None):
    """A file with these ids; its annotations spell the ids differently if ``other_way`` is given."""
    images, categories, annotations = images or IDS["plain"], categories or [1, 2], annotations or IDS["plain"]
    other_way = other_way or (lambda value: value)

    def change(content):
        for image, identifier in zip(content["images"], images):
            image["id"] = identifier
        for category, identifier in zip(content["categories"], categories):
            category["id"] = identifier
        for number, annotation in enumerate(content["annotations"]):
            annotation.update(
                id=annotations[number],
                image_id=other_way(images[number]),
                category_id=other_way(categories[number % 2]),
            )

    return write_set(folder, BOXES, change)


def check_files(folder, images, categories):
    """The prediction files have the ids of the annotation file, with the same types."""
    written = json.loads((folder / "coco_instances_results.json").read_text())
    expected = sorted(((images[i], categories[i % 2], BOXES[i].tolist()) for i in range(NUMBER)), key=repr)
    found = sorted(((x["image_id"], x["category_id"], x["bbox"]) for x in written), key=repr)
    assert [repr(x[:2]) for x in found] == [repr(x[:2]) for x in expected]
    predictions = torch.load(folder / "instances_predictions.pth", weights_only=False)
    assert sorted(map(repr, images)) == sorted(repr(x["image_id"]) for x in predictions)
    for prediction in predictions:
        assert [repr(x["image_id"]) for x in prediction["instances"]] == [repr(prediction["image_id"])]


@pytest.mark.parametrize("kind", IDS)
def test_image_ids(registered, tmp_path, kind):
    registered(with_ids(tmp_path, images=IDS[kind]))
    results = run(tmp_path / "out")
    for task in ("bbox", "segm"):
        values = {name: value for name, value in results[task].items() if name in ("AP", "AP-a", "AP-b")}
        assert values == pytest.approx({"AP": 100, "AP-a": 100, "AP-b": 100})
    check_files(tmp_path / "out", IDS[kind], [1, 2])


@pytest.mark.parametrize("kind", IDS)
def test_category_ids(registered, tmp_path, kind):
    """Ordered by id: numbers before texts, and numbers by value, however they are written."""
    ids = IDS[kind][:2]
    registered(with_ids(tmp_path, categories=ids))
    in_order = kind not in ("with gaps", "of 64 bits and small")
    assert class_names("toy_ids_val") == (["a", "b"] if in_order else ["b", "a"])
    results = run(tmp_path / "out")
    assert results["segm"]["AP"] == pytest.approx(100)
    assert [repr(x) for x in class_information("toy_ids_val")["category_ids"]] == [
        repr(x) for x in ids[:: 1 if in_order else -1]
    ]
    check_files(tmp_path / "out", IDS["plain"], ids)


@pytest.mark.parametrize("kind", IDS)
def test_annotation_ids(registered, tmp_path, kind):
    registered(with_ids(tmp_path, annotations=IDS[kind]))
    assert run(tmp_path / "out")["segm"]["AP"] == pytest.approx(100)


@pytest.mark.parametrize("images", [[1, 2, 3, 4, 5], ["1", "2", "3", "4", "5"], [1.0, 2.0, 3.0, 4.0, 5.0]])
@pytest.mark.parametrize("other_way", [int, float, str, "{:05d}".format, " {} ".format])
def test_references_written_in_another_way(registered, tmp_path, images, other_way):
    def way(value):
        return other_way(int(value))

    registered(with_ids(tmp_path, images, other_way=way))
    assert run(tmp_path / "out")["segm"]["AP"] == pytest.approx(100)
    check_files(tmp_path / "out", images, [1, 2])


def test_references_that_could_mean_two(registered, tmp_path):
    """With images 1 and "01", "1" could mean either."""

    def change(content):
        content["images"][1]["id"] = "01"
        content["annotations"][0]["image_id"] = "1"
        content["annotations"][1]["image_id"] = "01"

    registered(write_set(tmp_path, BOXES, change))
    with pytest.raises(DatasetError, match=r"unknown image \(annotation 1: '1'\)"):
        run(tmp_path / "out")


@pytest.mark.parametrize("kind", ["of 64 bits and small", "numbers and texts", "a number and its text"])
def test_recall_of_proposals(registered, tmp_path, kind):
    registered(with_ids(tmp_path, images=IDS[kind], categories=IDS[kind][:2]))
    class_names("toy_ids_val")
    results = run(tmp_path, ProposalRecallEvaluator("toy_ids_val", None, limits=(1, 100)))["proposals"]
    assert results["AR@1"] == 100
    assert {name: results[f"AR@100-{name}"] for name in "ab"} == {"a": 100, "b": 100}


def test_two_categories_of_one_name_keep_both_rows(registered, tmp_path):
    def change(content):
        content["categories"][1]["name"] = "a"
        content["annotations"][1]["bbox"] = [0, 0, 20, 20]
        content["annotations"][1]["segmentation"] = [[0, 0, 20, 0, 20, 20, 0, 20]]

    registered(write_set(tmp_path, BOXES, change))
    assert class_names("toy_ids_val") == ["a (1)", "a (2)"]
    results = run(tmp_path / "out")["segm"]
    assert results["AP-a (1)"] == pytest.approx(100)
    assert results["AP-a (2)"] < 100


@pytest.mark.parametrize("kind", ["of 64 bits and small", "numbers and texts"])
def test_sets_of_others_are_refused_before_objects_are_lost(tmp_path, kind):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    records = [{"file_name": str(tmp_path / "a.png"), "image_id": i, "height": 8, "width": 8} for i in IDS[kind]]
    DatasetCatalog.register("toy_foreign", lambda: records)
    MetadataCatalog.get("toy_foreign").set(evaluator_type="coco", thing_classes=["a"])
    try:
        with pytest.raises(DatasetError, match=r"image ids of toy_foreign .*\.register_coco"):
            check_images("toy_foreign", training=False)
    finally:
        DatasetCatalog.remove("toy_foreign")
        MetadataCatalog.pop("toy_foreign")


@pytest.mark.parametrize("kind", ["of 64 bits and small", "numbers and texts", "hashes"])
def test_panoptic_quality(tmp_path, kind):
    """One segment per image, found exactly."""
    images, (thing, stuff) = IDS[kind], IDS[kind][:2]
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[2:5, 2:5, 0] = 7
    Image.fromarray(colours).save(tmp_path / "a.png")
    segments = [{"id": 7, "category_id": thing, "iscrowd": 0}]
    content = {
        "annotations": [{"image_id": i, "file_name": "a.png", "segments_info": segments} for i in images],
        "categories": [{"id": thing, "isthing": 1}, {"id": stuff, "isthing": 0}],
    }
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    MetadataCatalog.get("toy_panoptic").set(
        panoptic_root=str(tmp_path),
        panoptic_json=str(tmp_path / "panoptic.json"),
        thing_dataset_id_to_contiguous_id={thing: 0},
        stuff_dataset_id_to_contiguous_id={stuff: 0},
    )
    try:
        evaluator = PanopticQualityEvaluator("toy_panoptic")
        evaluator.reset()
        found = torch.from_numpy((colours[..., 0] > 0).astype(np.int32))
        for image in images:
            segment = {"id": 1, "category_id": 0, "isthing": True}
            evaluator.process([{"image_id": image}], [{"panoptic_seg": (found, [segment])}])
        assert evaluator.evaluate()["panoptic_seg"]["PQ_th"] == 100
    finally:
        MetadataCatalog.pop("toy_panoptic")
