"""Recall of proposals against COCOeval without classes, and on cases counted by hand."""

import contextlib
import copy
import io
import json
import logging

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from instseg_d2.config import get_cfg
from instseg_d2.data import register_coco
from instseg_d2.errors import DatasetError
from instseg_d2.evaluation import ProposalRecallEvaluator, build_evaluator, evaluate
from instseg_d2.evaluation.proposal_recall import UNMATCHED, match_greedily

HEIGHT, WIDTH = 160, 200
NAME = "toy_proposals_val"


def rectangle(x, y, w, h):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def annotation(number, image_id, mask, category=1, crowd=0):
    rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
    box = mask_util.toBbox(rle).tolist()
    rle["counts"] = rle["counts"].decode()
    return {
        "id": number, "image_id": image_id, "category_id": category, "bbox": box, "area": int(mask.sum()),
        "iscrowd": crowd, "segmentation": rle,
    }  # fmt: skip


@pytest.fixture
def register(tmp_path):
    """Registers annotations of images 1, 2, ... as a data set and gives its name."""

    def write(annotations, num_images, categories=(1, 3)):
        content = {
            "images": [
                {"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in range(1, num_images + 1)
            ],
            "categories": [{"id": c, "name": f"class {c}"} for c in categories],
            "annotations": annotations,
        }
        (tmp_path / "val.json").write_text(json.dumps(content))
        register_coco(NAME, tmp_path / "val.json", tmp_path)
        DatasetCatalog.get(NAME)
        return NAME

    yield write
    if NAME in DatasetCatalog:
        DatasetCatalog.remove(NAME)
        MetadataCatalog.pop(NAME)


def instances(masks, scores):
    found = Instances((HEIGHT, WIDTH))
    masks = torch.from_numpy(np.array(masks, bool).reshape(-1, HEIGHT, WIDTH))
    found.scores = torch.as_tensor(scores, dtype=torch.float32)
    found.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    found.pred_classes = torch.zeros(len(masks), dtype=torch.int64)
    found.pred_masks = masks
    return found


def measure(evaluator, proposals):
    """Results for {image_id: Instances}."""
    evaluator.reset()
    for image_id, found in proposals.items():
        evaluator.process([{"image_id": image_id}], [{"instances": found}])
    return evaluator.evaluate()["proposals"]


def cocoeval_recall(json_file, proposals, limits):
    """{metric: percent} by pycocotools, and its recall (T, areas, L)."""
    results = []
    for image_id, found in proposals.items():
        for mask, score in zip(found.pred_masks.numpy(), found.scores.tolist()):
            rle = mask_util.encode(np.asfortranarray(mask, np.uint8))
            results.append({"image_id": image_id, "category_id": 1, "segmentation": rle, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(json_file)
        run = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "segm")
        run.params.useCats = 0
        run.params.maxDets = list(limits)
        run.evaluate()
        run.accumulate()
    recall = run.eval["recall"][:, 0]
    recall = np.where(recall < 0, np.nan, recall)
    names = {"": 0, "s": 1, "m": 2, "l": 3}
    metrics = {
        f"AR{suffix}@{limit}": 100 * recall[:, area, i].mean()
        for suffix, area in names.items()
        for i, limit in enumerate(limits)
    }
    return metrics, recall


def shaken(mask, rng):
    """The mask, slightly moved and cut."""
    dy, dx = rng.integers(-4, 5, 2)
    moved = np.roll(mask, (dy, dx), (0, 1))
    moved[: rng.integers(0, HEIGHT // 2)] &= rng.random() < 0.7
    return moved


@pytest.mark.parametrize("seed", range(4))
def test_equals_cocoeval(register, seed):
    """Objects of all sizes that overlap, crowds, equal scores, images without objects or proposals."""
    rng = np.random.default_rng(seed)
    annotations, proposals = [], {}
    for image_id in range(1, 7):
        masks = []
        for _ in range(0 if image_id == 2 else rng.integers(1, 9)):
            w, h = (int(v) for v in np.minimum(4 * 2 ** rng.uniform(0, 5.2, 2), (120, 120)))
            masks.append(rectangle(rng.integers(0, WIDTH - w), rng.integers(0, HEIGHT - h), w, h))
        masks += masks[:1]  # two equal objects
        for k, mask in enumerate(masks):
            crowd = int(k % 5 == 4)
            annotations.append(annotation(len(annotations) + 1, image_id, mask, int(rng.choice([1, 3])), crowd))
        found = [shaken(masks[rng.integers(len(masks))], rng) for _ in range(40)] if masks else []
        found = [] if image_id == 3 else [*found, rectangle(5, 5, 20, 20), np.zeros((HEIGHT, WIDTH), bool)]
        proposals[image_id] = instances(found, rng.integers(0, 12, len(found)) / 12)
    name = register(annotations, 6)
    limits = (5, 20, 30)
    expected, _ = cocoeval_recall(MetadataCatalog.get(name).json_file, proposals, limits)
    actual = measure(ProposalRecallEvaluator(name, limits=limits), proposals)
    assert {key: actual[key] for key in expected} == pytest.approx(expected, nan_ok=True)
    assert 0 < actual["AR@5"] < actual["AR@30"] < 100


def test_recall_of_classes_counted_by_hand(register):
    """Class 1: found at rank 0 and at rank 100, one beyond the limit of 100. Class 3: found at IoU 0.75, and missed."""
    squares = [rectangle(50 * k, 10, 40, 40) for k in range(4)]
    name = register([annotation(k + 1, 1, m, 1 if k < 2 else 3) for k, m in enumerate(squares)], 1)
    away = rectangle(0, 100, 10, 10)
    found = [squares[0], rectangle(100, 10, 40, 30), *[away] * 98, squares[1]]
    results = measure(ProposalRecallEvaluator(name), {1: instances(found, np.linspace(1, 0.1, 101))})
    of_class_3 = 6 / 10 / 2  # IoU 0.75 reaches 0.5, 0.55, ..., 0.75; of two objects
    assert results["AR@100-class 1"] == pytest.approx(100 / 2)
    assert results["AR@100-class 3"] == pytest.approx(100 * of_class_3)
    assert results["AR@100"] == pytest.approx(100 * (0.5 + of_class_3) / 2)
    assert results["AR@1000"] == pytest.approx(100 * (1 + of_class_3) / 2)
    assert results["ARm@10"] == results["AR@10"] == results["AR@100"]
    assert np.isnan(results["ARs@100"])
    assert np.isnan(results["ARl@100"])


def test_one_class_has_no_table_of_classes(register):
    name = register([annotation(1, 1, rectangle(0, 0, 10, 10))], 1, categories=(1,))
    results = measure(ProposalRecallEvaluator(name), {1: instances([], [])})
    assert len(results) == 12
    assert results["AR@1000"] == 0


def test_crowds_and_images_without_objects_count_for_nothing(register):
    square, crowd = rectangle(0, 0, 20, 20), rectangle(0, 0, 100, 100)
    name = register([annotation(1, 1, square), annotation(2, 1, crowd, crowd=1)], 2)
    found = {1: instances([crowd, square], [0.9, 0.8]), 2: instances([square], [0.9])}
    results = measure(ProposalRecallEvaluator(name), found)
    assert results["AR@10"] == 100
    assert np.isnan(results["ARl@10"])


def test_greedy_matching_by_hand():
    # The first proposal takes object 1; the second, better for object 1, gets object 0 where 0.5 is enough.
    ious = np.array([[0.6, 0.7], [0.5, 0.9], [0.0, 0.95]])
    ranks = match_greedily(ious, np.array([0.5, 0.65, 0.8]))
    assert ranks.tolist() == [[1, 0], [UNMATCHED, 0], [UNMATCHED, 1]]
    assert match_greedily(np.zeros((3, 0)), np.array([0.5])).shape == (1, 0)
    assert match_greedily(np.ones((1, 2)), np.array([1.0])).tolist() == [[UNMATCHED, 0]]


def test_objects_or_proposals_without_masks(register):
    bare = annotation(1, 1, rectangle(0, 0, 9, 9))
    del bare["segmentation"]
    evaluator = ProposalRecallEvaluator(register([bare], 1))
    with pytest.raises(DatasetError, match=f"{NAME} has objects without masks"):
        measure(evaluator, {1: instances([], [])})
    evaluator = ProposalRecallEvaluator(register([annotation(1, 1, rectangle(0, 0, 9, 9))], 1))
    found = instances([], [])
    found.remove("pred_masks")
    with pytest.raises(ValueError, match="pred_masks"):
        measure(evaluator, {1: found})


class Finder(torch.nn.Module):
    def forward(self, batch):
        return [{"instances": instances([rectangle(0, 0, 20, 20)], [0.5])} for _ in batch]


def test_runs_as_the_evaluator_of_instancefcn(register, tmp_path, caplog):
    """Chosen by the meta-architecture, it logs tables and leaves a picture; nan is explained."""
    caplog.set_level(logging.INFO)
    name = register([annotation(1, 1, rectangle(0, 0, 20, 20)), annotation(2, 1, rectangle(50, 50, 30, 30))], 1)
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "InstanceFCN"
    evaluator = build_evaluator(cfg, name, str(tmp_path / "inference"))
    assert isinstance(evaluator, ProposalRecallEvaluator)
    results = evaluate(Finder(), [[{"image_id": 1}]], evaluator, name)
    assert results["proposals"]["AR@10"] == 50
    assert (tmp_path / "inference" / "proposal_recall.png").read_bytes().startswith(b"\x89PNG")
    text = "\n".join(r.getMessage() for r in caplog.records)
    assert "Recall of segment proposals" in text
    assert "ARm@10: no medium objects" in text
    assert "1 classes without annotations (class 3)" in text
    cfg.MODEL.INSTANCE_FCN.CLASSIFY = True
    assert not isinstance(build_evaluator(cfg, name, str(tmp_path)), ProposalRecallEvaluator)
