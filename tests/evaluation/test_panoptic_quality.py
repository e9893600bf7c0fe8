"""Panoptic quality by hand, against a naive count, against Detectron2's evaluator, and of a trained model."""

import importlib.machinery
import importlib.util
import json
import logging
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from detectron2.structures import BitMasks, Instances

from instseg_d2.config import get_cfg
from instseg_d2.data import build_test_loader
from instseg_d2.data.shapes import panoptic as shapes_panoptic
from instseg_d2.data.shapes.instances import CATEGORY_IDS
from instseg_d2.engine import Trainer
from instseg_d2.evaluation import PanopticQualityEvaluator, build_evaluator, count_matches, evaluate
from instseg_d2.evaluation.coco import CocoEvaluator
from tests.tiny import tiny_config

NAME, NUM_IMAGES = "tiny_panoptic_val", 6


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Six images with the panoptic maps: the name and the folder."""
    folder = tmp_path_factory.mktemp("panoptic")
    shapes_panoptic.register_split(NAME, folder, "val", NUM_IMAGES, 8)
    DatasetCatalog.get(NAME)
    yield folder
    DatasetCatalog.remove(NAME)
    MetadataCatalog.pop(NAME)


def read_ids(path):
    blue, green, red = cv2.imread(str(path)).astype(int).transpose(2, 0, 1)
    return red + 256 * green + 256**2 * blue


def naive_counts(truth, true_segments, found, found_segments, counts):
    """The paper's section 4.1 segment by segment, as sets of pixels."""
    pixels = lambda ids, s: set(np.flatnonzero(ids.ravel() == s["id"]).tolist())  # noqa: E731
    void = set(np.flatnonzero(truth.ravel() == 0).tolist())
    partners = set()
    for s in true_segments:
        own = pixels(truth, s)
        if s.get("iscrowd"):
            continue
        hit = None
        for number, other in enumerate(found_segments):
            theirs = pixels(found, other) - void
            iou = len(own & theirs) / len(own | theirs)
            if other["category_id"] == s["category_id"] and iou > 0.5:
                hit = number, iou
        counts.setdefault(s["category_id"], []).append(("fn", 0) if hit is None else ("tp", hit[1]))
        partners |= set() if hit is None else {hit[0]}
    for number, other in enumerate(found_segments):
        theirs = pixels(found, other)
        ignored = set(void)
        for s in true_segments:
            if s.get("iscrowd") and s["category_id"] == other["category_id"]:
                ignored |= pixels(truth, s)
        if number not in partners and len(theirs & ignored) / len(theirs) <= 0.5:
            counts.setdefault(other["category_id"], []).append(("fp", 0))


def naive_pq_compute(gt_json_file, pred_json_file, gt_folder, pred_folder):
    """A stand-in for panopticapi's pq_compute."""
    truth, found = (json.loads(Path(p).read_text()) for p in (gt_json_file, pred_json_file))
    predictions = {x["image_id"]: x for x in found["annotations"]}
    counts = {}
    for x in truth["annotations"]:
        other = predictions[x["image_id"]]
        naive_counts(
            read_ids(Path(gt_folder) / x["file_name"]), x["segments_info"],
            read_ids(Path(pred_folder) / other["file_name"]), other["segments_info"], counts,
        )  # fmt: skip
    things = {c["id"]: c["isthing"] for c in truth["categories"]}
    results = {}
    for name, wanted in (("All", (0, 1)), ("Things", (1,)), ("Stuff", (0,))):
        values = []
        for category in (c for c in counts if things[c] in wanted):
            kinds = [kind for kind, _ in counts[category]]
            weight = kinds.count("tp") + 0.5 * (kinds.count("fp") + kinds.count("fn"))
            iou = sum(value for _, value in counts[category])
            values.append((iou / weight, iou / max(kinds.count("tp"), 1), kinds.count("tp") / weight))
        means = np.mean(values, axis=0) if values else (np.nan,) * 3
        results[name] = {**dict(zip(("pq", "sq", "rq"), means)), "n": len(values)}
    return results


@pytest.fixture
def panopticapi(monkeypatch):
    """panopticapi if installed, else a stand-in for what Detectron2 calls."""
    if importlib.util.find_spec("panopticapi") is not None:
        return
    for name in ("panopticapi", "panopticapi.utils", "panopticapi.evaluation"):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    sys.modules["panopticapi.utils"].id2rgb = lambda ids: np.stack(
        [ids % 256, ids // 256 % 256, ids // 256**2], axis=-1
    ).astype(np.uint8)
    sys.modules["panopticapi.evaluation"].pq_compute = naive_pq_compute


@pytest.fixture
def no_panopticapi(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "panopticapi" else find(name))


def segment(identifier, category, **more):
    return {"id": identifier, "category_id": category, **more}


def test_counts_by_hand():
    """One row of ten pixels: void 2, then a thing of 4 (category 1) and stuff of 4 (category 2)."""
    truth = np.array([[0, 0, 300, 300, 300, 300, 70000, 70000, 70000, 70000]])
    true_segments = [segment(300, 1), segment(70000, 2)]
    found = np.array([[1, 1, 1, 1, 1, 1, 1, 2, 2, 0]])
    counts = count_matches(truth, true_segments, found, [segment(1, 1), segment(2, 2)])
    # 4 of 5 pixels outside void; 2 of 4 are not more than half.
    assert {k: v.tolist() for k, v in counts.items()} == {1: [1, 0, 0, 0.8], 2: [0, 1, 1, 0]}
    counts = count_matches(truth, true_segments, found, [segment(1, 2), segment(2, 1)])
    assert {k: v.tolist() for k, v in counts.items()} == {1: [0, 1, 1, 0], 2: [0, 1, 1, 0]}


def test_void_and_crowds_by_hand():
    truth = np.array([[0, 0, 0, 5, 5, 5, 5, 9, 9, 9]])
    true_segments = [segment(5, 1, iscrowd=1), segment(9, 2)]
    found = np.array([[1, 1, 1, 1, 2, 2, 3, 3, 3, 3]])
    predictions = [segment(1, 2), segment(2, 1), segment(3, 2)]
    # 1 lies on void by three quarters, 2 on a crowd of its category, 3 covers 9 with one pixel too many.
    counts = count_matches(truth, true_segments, found, predictions)
    assert {k: v.tolist() for k, v in counts.items() if v.any()} == {2: [1, 0, 0, 0.75]}
    predictions[1]["category_id"] = 2
    assert count_matches(truth, true_segments, found, predictions)[2].tolist() == [1, 1, 0, 0.75]


def test_nothing_found_and_nothing_there():
    blank = np.zeros((3, 4), int)
    assert not count_matches(blank, [], blank, [])
    counts = count_matches(np.ones((3, 4), int), [segment(1, 7)], blank, [])
    assert counts[7].tolist() == [0, 0, 1, 0]
    counts = count_matches(np.ones((3, 4), int), [], np.ones((3, 4), int), [segment(1, 7)])
    assert counts[7].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_counts_against_sets_of_pixels(seed):
    rng = np.random.default_rng(seed)
    maps, segments = [], []
    for crowd in (1, 0):
        ids = rng.integers(0, 4, (4, 5)).repeat(3, 0).repeat(3, 1)
        ids[rng.random(ids.shape) < 0.1] = 0
        maps.append(ids)
        segments.append(
            [
                segment(i, int(rng.integers(1, 3)), iscrowd=crowd * int(rng.random() < 0.3))
                for i in np.unique(ids[ids > 0]).tolist()
            ]
        )
    maps[1] = np.where(rng.random(maps[1].shape) < 0.7, maps[0], maps[1])
    segments[1] = [s for s in segments[1] if (maps[1] == s["id"]).any()]
    expected = {}
    naive_counts(maps[0], segments[0], maps[1], segments[1], expected)
    counts = {k: v for k, v in count_matches(maps[0], segments[0], maps[1], segments[1]).items() if v.any()}
    assert set(counts) == set(expected)
    for category, (tp, fp, fn, iou) in counts.items():
        kinds = [kind for kind, _ in expected[category]]
        assert (tp, fp, fn) == tuple(kinds.count(kind) for kind in ("tp", "fp", "fn"))
        assert iou == pytest.approx(sum(value for _, value in expected[category]))


class Oracle(torch.nn.Module):
    """Returns the true maps or, with ``faults``, maps with missing, swapped and moved segments."""

    def __init__(self, folder, faults=False):
        super().__init__()
        self.truth = {
            x["image_id"]: (read_ids(folder / "panoptic_val" / x["file_name"]), x["segments_info"])
            for x in json.loads((folder / "panoptic_val.json").read_text())["annotations"]
        }
        self.faults = faults

    def forward(self, batch):
        return [self.output(x["image_id"]) for x in batch]

    def output(self, image_id):
        ids, segments = self.truth[image_id]
        small, kept = np.zeros(ids.shape, np.int32), []
        for number, s in enumerate(segments, start=1):
            isthing = s["category_id"] in CATEGORY_IDS
            own = CATEGORY_IDS if isthing else (None, *shapes_panoptic.STUFF_CATEGORY_IDS)
            kept.append({"id": number, "isthing": isthing, "category_id": own.index(s["category_id"]), "score": 0.9})
            small[ids == s["id"]] = number
        if self.faults:
            small = np.roll(small, 9, axis=image_id % 2)
            small[small == image_id % 3] = 0
            kept = [s for s in kept if (small == s["id"]).any()]
            for s in kept[3 : 4 + image_id % 2]:
                s["category_id"] = 1
        labels = np.zeros(ids.shape, int)
        for s in kept:
            labels[small == s["id"]] = 0 if s["isthing"] else s["category_id"]
        found = Instances(ids.shape)
        things = [s for s in kept if s["isthing"]]
        found.pred_masks = torch.from_numpy(np.array([small == s["id"] for s in things]).reshape(-1, *ids.shape))
        found.pred_boxes = BitMasks(found.pred_masks).get_bounding_boxes()
        found.scores = torch.full((len(things),), 0.9)
        found.pred_classes = torch.tensor([s["category_id"] for s in things], dtype=torch.int64)
        logits = torch.nn.functional.one_hot(torch.from_numpy(labels), 5).permute(2, 0, 1).float()
        return {"instances": found, "sem_seg": logits, "panoptic_seg": (torch.from_numpy(small), kept)}


def panoptic_config():
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def run(dataset, folder, faults):
    cfg = panoptic_config()
    loader = build_test_loader(cfg, NAME)
    return evaluate(Oracle(dataset, faults), loader, build_evaluator(cfg, NAME, str(folder)), NAME)


def test_the_truth_is_perfect(dataset, tmp_path, no_panopticapi, caplog):
    caplog.set_level(logging.INFO)
    results = run(dataset, tmp_path, faults=False)
    assert len(results["panoptic_seg"]) == 9
    assert all(value == pytest.approx(100) for value in results["panoptic_seg"].values())
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    assert results["segm"]["AP"] > 75  # polygons are true to half a pixel
    (line,) = [r.getMessage() for r in caplog.records if "panopticapi" in r.getMessage()]
    assert line.startswith("panopticapi is not installed (pip install ")
    assert f"instseg_d2 computes the panoptic quality of {NAME} itself" in line


def test_the_same_as_detectron2s_evaluator(dataset, tmp_path, panopticapi):
    """Detectron2's evaluator is used if panopticapi is installed; ours gives the same counts."""
    evaluators = build_evaluator(panoptic_config(), NAME, str(tmp_path))
    assert isinstance(evaluators, DatasetEvaluators)
    theirs = run(dataset, tmp_path, faults=True)["panoptic_seg"]
    assert (tmp_path / "predictions.json").is_file()  # it was Detectron2's
    assert 5 < theirs["PQ"] < 95
    cfg = panoptic_config()
    ours = evaluate(Oracle(dataset, True), build_test_loader(cfg, NAME), PanopticQualityEvaluator(NAME), NAME)
    assert ours["panoptic_seg"] == pytest.approx(theirs)


@pytest.mark.parametrize("meta_architecture", ["GeneralizedRCNN", "SparseInst", "BlendMask"])
def test_models_of_instances_are_measured_by_them(dataset, tmp_path, meta_architecture):
    cfg = panoptic_config()
    cfg.MODEL.META_ARCHITECTURE = meta_architecture
    cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED = False
    assert type(build_evaluator(cfg, NAME, str(tmp_path))) is CocoEvaluator


def test_a_model_through_the_trainer(dataset, tmp_path, no_panopticapi):
    cfg = tiny_config(
        "BlendMask",
        "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True,
        "MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p3", "p4"],
        "MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5,
        "DATASETS.TEST", (NAME,),
        "INPUT.MIN_SIZE_TEST", 64,
        "DATALOADER.NUM_WORKERS", 0,
        "OUTPUT_DIR", str(tmp_path),
        num_classes=6,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    model.proposal_generator.head.class_logits.bias.data.fill_(1.0)  # finds something
    results = Trainer.test(cfg, model)
    assert set(results) == {"bbox", "segm", "sem_seg", "panoptic_seg"}
    assert 0 <= results["panoptic_seg"]["PQ"] < 30
    assert 0 <= results["sem_seg"]["mIoU"] < 50
    assert "PQ" in (tmp_path / "inference" / "results.json").read_text()
