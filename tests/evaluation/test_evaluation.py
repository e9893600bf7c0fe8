"""Which evaluator is chosen, how many detections AP counts, and what the log explains."""

import json
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from detectron2.structures import Boxes, Instances

from instseg_d2.config import get_cfg
from instseg_d2.data import register_coco
from instseg_d2.errors import DatasetError
from instseg_d2.evaluation import build_evaluator, evaluate, write_results
from instseg_d2.evaluation.coco import LvisEvaluator
from instseg_d2.modeling.postprocessing import RunLengthMasks

SIZE = 200


def squares(count, side=8):
    """Corners of ``count`` squares on a grid, none touching another."""
    columns = SIZE // (side + 2)
    return [((i % columns) * (side + 2), (i // columns) * (side + 2)) for i in range(count)]


@pytest.fixture
def dataset(tmp_path):
    """150 squares of 8 x 8 pixels in one image, class "square"; "disc" never occurs."""
    annotations = [
        {"id": i, "image_id": 7, "category_id": 3, "bbox": [x, y, 8, 8], "area": 64, "iscrowd": 0,
         "segmentation": [[x, y, x + 8, y, x + 8, y + 8, x, y + 8]]}
        for i, (x, y) in enumerate(squares(150), start=1)
    ]  # fmt: skip
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": SIZE, "width": SIZE}],
        "categories": [{"id": 3, "name": "square"}, {"id": 9, "name": "disc"}],
        "annotations": annotations,
    }
    (tmp_path / "val.json").write_text(json.dumps(content))
    register_coco("toy_squares_val", tmp_path / "val.json", tmp_path)
    DatasetCatalog.get("toy_squares_val")
    yield "toy_squares_val"
    DatasetCatalog.remove("toy_squares_val")
    MetadataCatalog.pop("toy_squares_val")


class Oracle(torch.nn.Module):
    """Finds the first ``count`` squares exactly."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, batch):
        masks = torch.zeros(self.count, SIZE, SIZE, dtype=torch.bool)
        for mask, (x, y) in zip(masks, squares(self.count)):
            mask[y : y + 8, x : x + 8] = True
        found = Instances((SIZE, SIZE))
        found.pred_boxes = Boxes(torch.tensor([[x, y, x + 8, y + 8] for x, y in squares(self.count)]).view(-1, 4))
        found.scores = torch.linspace(1, 0.5, self.count)
        found.pred_classes = torch.zeros(self.count, dtype=torch.int64)
        found.pred_masks = masks
        return [{"instances": found}]


def run(dataset, folder, found, cap):
    cfg = get_cfg()
    cfg.TEST.DETECTIONS_PER_IMAGE = cap
    loader = [[{"image_id": 7, "height": SIZE, "width": SIZE}]]
    return evaluate(Oracle(found), loader, build_evaluator(cfg, dataset, str(folder)), dataset)


@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize(
    ("found", "cap", "recall"),
    [(150, 400, 1.0), (120, 400, 0.8), (150, 100, 2 / 3), (150, 60, 0.4)],
)
def test_ap_counts_up_to_the_cap(dataset, tmp_path, task, found, cap, recall):
    """All detections are right, so AP is the share of the 101 recall thresholds that they reach."""
    results = run(dataset, tmp_path / "inference", found, cap)
    thresholds = np.linspace(0, 1, 101)
    expected = 100 * (thresholds <= recall + 1e-9).mean()
    for metric in ("AP", "AP50", "AP75", "APs", "AP-square"):
        assert results[task][metric] == pytest.approx(expected)
    assert np.isnan(results[task]["APl"])
    assert np.isnan(results[task]["AP-disc"])


def test_predictions_are_left_as_coco_results(dataset, tmp_path):
    run(dataset, tmp_path, 2, 100)
    first = json.loads((tmp_path / "coco_instances_results.json").read_text())[0]
    assert (first["image_id"], first["category_id"], first["bbox"]) == (7, 3, [0, 0, 8, 8])
    assert mask_util.decode(first["segmentation"]).sum() == 64


def test_missing_numbers_are_explained(dataset, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    run(dataset, tmp_path, 150, 400)
    lines = [r.getMessage() for r in caplog.records if r.name == "instseg_d2.evaluation.run"]
    assert lines[0] == f"150 detections in 1 images of {dataset}."
    assert lines[2] == (
        f"segm: nan where {dataset} has nothing to measure: APm: no medium objects (32 x 32 to 96 x 96 pixels); "
        "APl: no large objects (over 96 x 96 pixels); 1 classes without annotations (disc)."
    )


def test_finding_nothing_is_one_warning(dataset, tmp_path, caplog):
    results = run(dataset, tmp_path, 0, 100)
    warnings = [r for r in caplog.records if r.name == "instseg_d2.evaluation.run" and r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert "Nothing was detected in the 1 images of toy_squares_val: the model is not trained" in warnings[0].message
    assert np.isnan(results["bbox"]["AP"])


def test_choice_by_metadata(tmp_path, dataset):
    assert isinstance(build_evaluator(get_cfg(), dataset, str(tmp_path)), COCOEvaluator)
    assert isinstance(build_evaluator(get_cfg(), "voc_2007_val", str(tmp_path)), PascalVOCDetectionEvaluator)
    MetadataCatalog.get("toy_stuff").set(
        evaluator_type="sem_seg", stuff_classes=["sky"], stuff_dataset_id_to_contiguous_id={1: 0}, ignore_label=255
    )
    DatasetCatalog.register("toy_stuff", lambda: [{"file_name": "a.png", "sem_seg_file_name": "b.png"}])
    assert isinstance(build_evaluator(get_cfg(), "toy_stuff", str(tmp_path)), SemSegEvaluator)
    DatasetCatalog.remove("toy_stuff")
    MetadataCatalog.pop("toy_stuff")


@pytest.mark.parametrize("masks", [True, False])
def test_lvis_predictions_are_those_of_detectron2(masks):
    """Without the package lvis, which would read the annotations."""
    generator = torch.Generator().manual_seed(1)
    inputs, outputs = [], []
    for image, count in enumerate((3, 0, 5)):
        found = Instances((20, 30))
        found.pred_boxes = Boxes(torch.rand(count, 4, generator=generator) * 20)
        found.scores = torch.rand(count, generator=generator)
        found.pred_classes = torch.randint(0, 9, (count,), generator=generator)
        if masks:
            found.pred_masks = torch.rand(count, 20, 30, generator=generator) > 0.5
        inputs.append({"image_id": image})
        outputs.append({"instances": found})
    inputs.append({"image_id": 3})
    outputs.append({})
    kept = []
    for kind in (LVISEvaluator, LvisEvaluator):
        evaluator = kind.__new__(kind)
        evaluator._cpu_device = torch.device("cpu")
        evaluator.reset()
        evaluator.process(inputs, outputs)
        kept.append(evaluator._predictions)
    assert kept[0] == kept[1]
    assert [len(x.get("instances", ())) for x in kept[1]] == [3, 0, 5, 0]
    assert LvisEvaluator.reads_run_lengths
    if masks:
        for output in outputs[:3]:
            output["instances"].pred_masks = RunLengthMasks.encode(output["instances"].pred_masks)
        evaluator.reset()
        evaluator.process(inputs, outputs)
        assert evaluator._predictions == kept[0]


def test_cityscapes_has_its_own_evaluator(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    evaluator = build_evaluator(get_cfg(), "cityscapes_fine_instance_seg_val", str(tmp_path))
    assert isinstance(evaluator, CityscapesInstanceEvaluator)


@pytest.mark.parametrize(
    ("kind", "package"),
    [("lvis", "lvis"), ("cityscapes_instance", "cityscapesscripts"), ("keypoints", "evaluator_type keypo")],
)
def test_what_is_missing_is_named(tmp_path, monkeypatch, kind, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    MetadataCatalog.get("toy_kind").set(evaluator_type=kind)
    with pytest.raises(DatasetError, match=rf"toy_kind .*{package}"):
        build_evaluator(get_cfg(), "toy_kind", str(tmp_path))
    MetadataCatalog.pop("toy_kind")


def test_model_is_left_in_training_mode(dataset, tmp_path):
    model = Oracle(1)
    seen = []
    model.register_forward_hook(lambda module, args, output: seen.append(module.training))
    evaluate(model, [[{"image_id": 7}]], DatasetEvaluator(), dataset)
    assert (seen, model.training) == ([False], True)


def test_results_file_has_null_for_nan(tmp_path):
    write_results(str(tmp_path / "inference" / "results.json"), {"segm": {"AP": 1.5, "APl": float("nan")}})
    assert json.loads((tmp_path / "inference" / "results.json").read_text()) == {"segm": {"AP": 1.5, "APl": None}}
