"""
A detection whose score or box is not a number is dropped, and no other, on every way to results.

The oracle is the output without that detection.
"""

import copy
import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from instseg_d2.apps import compare as comparison
from instseg_d2.apps.predict import run_demo
from instseg_d2.data import register_coco
from instseg_d2.evaluation import build_evaluator, evaluate
from instseg_d2.export.parity import reference
from instseg_d2.inference.predictor import Predictor
from instseg_d2.methods import method_of
from instseg_d2.modeling.istr import istr
from instseg_d2.modeling.meta_arch import detect
from instseg_d2.modeling.proposal_generator import FCOS
from tests.tiny import METHODS, tiny_config, tiny_model

SPOILT = {
    "score nan": ("scores", math.nan),
    "score inf": ("scores", math.inf),
    "box nan": ("pred_boxes", math.nan),
    "box inf": ("pred_boxes", math.inf),
}


@pytest.fixture(scope="module", params=[*METHODS, "FCOSDetector"])
def predictor(request):
    cfg = tiny_config(request.param, "INPUT.MIN_SIZE_TEST", 64, finding=True)
    predictor = Predictor(cfg, "", class_names=["a", "b", "c"], optimize=False)
    predictor.model = tiny_model(request.param, finding=True).eval()
    return predictor


def picture(seed, size=(60, 80)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def has_boxes(predictor):
    """Of its own, not those of its masks."""
    model = predictor.model
    return model.infer(model.preprocess([predictor.preprocess(picture(0))]))[0]["instances"].has("pred_boxes")


def victim(instances):
    """The third best detection whose box lies inside the image, so that it shows in the output."""
    inside = torch.ones(len(instances), dtype=torch.bool)
    if instances.has("pred_boxes"):
        boxes = copy.deepcopy(instances.pred_boxes)
        boxes.clip(instances.image_size)
        inside = boxes.nonempty(threshold=8)
    return int(torch.where(inside, instances.scores, 0.0).topk(3).indices[2])


def without_victim(instances):
    return instances[torch.arange(len(instances)) != victim(instances)]


def spoil(instances, field, value):
    tensor = instances.scores if field == "scores" else instances.pred_boxes.tensor[:, 2]
    tensor[victim(instances)] = value
    return instances


def outcome(model, change, way):
    """The output when ``change`` has been applied to the detections."""
    infer = model.infer

    def changed(images):
        return [{**found, "instances": change(found["instances"])} for found in infer(images)]

    model.infer = changed
    try:
        return way()
    finally:
        del model.infer


def references(model, way):
    """The output without the victim, and with the intact victim."""
    return outcome(model, without_victim, way), outcome(model, lambda x: x, way)


def assert_same(found, expected):
    assert found.get_fields().keys() == expected.get_fields().keys()
    assert len(found) == len(expected) > 3
    for name, value in expected.get_fields().items():
        other = found.get(name)
        if name == "pred_masks" and not isinstance(value, torch.Tensor):
            assert other.codes == value.codes
        elif name == "pred_boxes":
            assert torch.equal(other.tensor, value.tensor)
        else:
            assert torch.equal(other, value)


def every_way(predictor):
    model, records = predictor.model, [predictor.preprocess(picture(seed)) for seed in (0, 1)]
    results = [model(records), detect(model, records)]
    results += [model.detect(records, masks=masks) for masks in ("full", "run_lengths", "none")]
    results += [predictor.outputs(records), predictor.outputs(records, 1e-6, "run_lengths")]
    instances = [x["instances"] for outputs in results for x in outputs] + predictor.predict(records)
    return [*instances, *predictor.batch([picture(0), picture(1)]), predictor(picture(0))]


@pytest.fixture(scope="module")
def references_of_every_way(predictor):
    return references(predictor.model, lambda: every_way(predictor))


@pytest.mark.parametrize("case", SPOILT)
def test_every_way_to_instances(predictor, references_of_every_way, case):
    model, (field, value) = predictor.model, SPOILT[case]
    if field == "pred_boxes" and not has_boxes(predictor):
        pytest.skip("its boxes are those of its masks")
    spoilt = outcome(model, lambda x: spoil(x, field, value), lambda: every_way(predictor))
    for found, expected, sound in zip(spoilt, *references_of_every_way):
        assert_same(found, expected)
        assert len(found) == len(sound) - 1


@pytest.fixture
def dataset(tmp_path):
    """Two pictures with an object each."""
    images, annotations = [], []
    for i in (1, 2):
        Image.fromarray(picture(i)).save(tmp_path / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 60, "width": 80})
        annotations.append(
            {"id": i, "image_id": i, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0,
             "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]]}
        )  # fmt: skip
    categories = [{"id": i + 1, "name": name} for i, name in enumerate("abc")]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(content))
    register_coco("two_pictures_val", tmp_path / "val.json", tmp_path)
    DatasetCatalog.get("two_pictures_val")
    yield "two_pictures_val"
    DatasetCatalog.remove("two_pictures_val")
    MetadataCatalog.pop("two_pictures_val")


@pytest.mark.parametrize("case", ["score nan", "box inf"])
def test_evaluation_demo_and_comparison(predictor, dataset, tmp_path, monkeypatch, case):
    """The files they write."""
    model, (field, value) = predictor.model, SPOILT[case]
    inputs = [{**predictor.preprocess(picture(i)), "image_id": i} for i in (1, 2)]
    if field == "pred_boxes" and not has_boxes(predictor):
        pytest.skip("its boxes are those of its masks")
    monkeypatch.setattr(comparison, "gflops", lambda *_: 1.0)
    monkeypatch.setattr(comparison, "peak_memory", lambda *_: 1)
    contender = comparison.Contender("it", "it.yaml", predictor, {}, 1, "none")

    def ways():
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        evaluator = build_evaluator(predictor.cfg, dataset, str(folder / "evaluation"))
        results = evaluate(model, [[x] for x in inputs], evaluator, dataset)
        run_demo(predictor, [dataset], str(folder / "demo"), score_threshold=1e-6)
        comparison.compare([contender], dataset, str(folder), repeats=1, score_threshold=1e-6)
        files = ["demo/results.json", "demo/1.jpg", "demo/2.jpg", "pictures.jpg"]
        if not method_of(predictor.cfg).class_agnostic(predictor.cfg):
            files.append("evaluation/coco_instances_results.json")
        return json.dumps(results, default=str), *((folder / file).read_bytes() for file in files)

    found = outcome(model, lambda x: spoil(x, field, value), ways)
    expected, sound = references(model, ways)
    assert found == expected
    counts = [len(json.loads(written[1])) for written in (expected, sound)]
    assert 3 < counts[0] < counts[1]


SEAMS = {  # where detections come from before `explain` draws them
    "BlendMask": lambda model: (model.proposal_generator, "detect"),
    "EmbedMask": lambda model: (model.proposal_generator, "detect"),
    "InstanceFCN": lambda model: (model, "_detect"),
    "ISTR": lambda model: (istr, "to_instances"),
    "SparseInst": lambda model: (model, "detections"),
}


def test_explain(predictor, monkeypatch):
    """The best detection is not a number: the next ones are drawn. None is a number: no error."""
    if type(predictor.model).__name__ not in SEAMS:
        pytest.skip("has no pictures")
    owner, name = SEAMS[type(predictor.model).__name__](predictor.model)
    sound = predictor.explain(picture(0), 2)
    original = getattr(owner, name)

    def explained(count):
        def changed(*args):
            result = original(*args)
            (instances,) = result[0] if isinstance(result, tuple) else result
            instances.scores[instances.scores.topk(count or len(instances)).indices] = math.nan
            return result

        monkeypatch.setattr(owner, name, changed)
        return [title for title, _ in predictor.explain(picture(0), 2)]

    titles = explained(1)
    assert len(titles) == len(sound) > 0
    assert not any("nan" in title for title in titles + explained(None))


def exportable(predictor):
    return method_of(predictor.cfg).exportable(predictor.model)


def graph_of_an_export(predictor, size=(60, 80)):
    """What the graph that is exported finds in a picture: boxes, scores, labels, masks."""
    image = torch.from_numpy(picture(0)).permute(2, 0, 1)[None]
    image = torch.nn.functional.interpolate(image.float(), size).to(torch.uint8)
    with torch.no_grad():
        return exportable(predictor)(image, torch.tensor(size), torch.tensor(size))


def test_reference_of_an_export(predictor, monkeypatch):
    """The gate compares the sound detections alone."""
    record = {**predictor.preprocess(picture(0)), "image": torch.from_numpy(picture(0)).permute(2, 0, 1)}
    (before,) = (x["instances"] for x in reference(predictor, [record], (60, 80)))
    infer = type(predictor.model).infer

    def changed(self, images):
        (found,) = infer(self, images)
        return [{**found, "instances": spoil(found["instances"], "scores", math.nan)}]

    monkeypatch.setattr(type(predictor.model), "infer", changed)
    (after,) = (x["instances"] for x in reference(predictor, [record], (60, 80)))
    assert len(after) == len(before) - 1 > 1
    assert set(after.scores.tolist()) < set(before.scores.tolist())


@pytest.mark.parametrize("field", ["class_logits", "objectness_logits", "mask_logits"])
def test_graph_of_sparseinst(predictor, monkeypatch, field):
    if type(predictor.model).__name__ != "SparseInst":
        pytest.skip("outputs of this name are SparseInst's")
    _, scores, _, masks = graph_of_an_export(predictor)
    outputs = predictor.model.outputs

    def changed(images):
        found = outputs(images)
        return {**found, field: found[field].index_fill(1, torch.tensor([3]), math.nan)}

    monkeypatch.setattr(predictor.model, "outputs", changed)
    _, found_scores, _, found_masks = graph_of_an_export(predictor)
    assert scores[0, 3] > 0
    scores[0, 3] = 0
    assert torch.equal(found_scores, scores)
    assert torch.equal(found_masks[0, 4:], masks[0, 4:])


@pytest.mark.parametrize("field", ["class_logits", "ltrb", "quality_logits"])
def test_graph_of_fcos(predictor, monkeypatch, field):
    """A location whose class, box or quality is NaN is no detection and suppresses none."""
    fcos = getattr(predictor.model, "proposal_generator", None)
    if not isinstance(fcos, FCOS):
        pytest.skip("not FCOS")
    scores = graph_of_an_export(predictor)[1]
    outputs = fcos.outputs

    def changed(features):
        found = outputs(features)
        best = (found.class_logits.sigmoid().amax(1) * found.quality_logits.sigmoid()).argmax()
        getattr(found, field)[best] = math.nan
        return found

    monkeypatch.setattr(fcos, "outputs", changed)
    found_boxes, found_scores = graph_of_an_export(predictor)[:2]
    assert scores[0, 0] > 0
    assert found_scores.isfinite().all()
    assert found_boxes.isfinite().all()
    assert found_scores[0, 0] < scores[0, 0]
    assert found_scores[0, 0] > 0


def test_graph_of_other_methods(predictor, monkeypatch):
    """A query or a window whose score is NaN is no detection."""
    name = type(predictor.model).__name__
    if name == "ISTR":
        head = predictor.model.roi_heads.heads[-1]
        classify = head.classify
        spoilt = lambda queries: classify(queries).index_fill(1, torch.tensor([0]), math.nan)  # noqa: E731
        monkeypatch.setattr(head, "classify", spoilt)
    elif name == "InstanceFCN":
        generator = predictor.model.proposal_generator
        outputs = generator.outputs

        def spoilt(features):
            score_maps, objectness = outputs(features)
            objectness[..., 0, :] = math.nan
            return score_maps, objectness

        monkeypatch.setattr(generator, "outputs", spoilt)
    else:
        pytest.skip("has a test of its own")
    boxes, scores, _, _ = graph_of_an_export(predictor)
    assert scores.isfinite().all()
    assert boxes.isfinite().all()
    assert (scores > 0).sum() > 1
