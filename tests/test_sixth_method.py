"""
A sixth method, written only in this file: the package trains, evaluates, draws, explains, compares, exports and reloads
it. N images, Q slots, K classes, D detections, h x w cells of stride 4.
"""

import inspect
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog
from detectron2.modeling import META_ARCH_REGISTRY, ResNet
from detectron2.modeling.backbone import BasicStem
from detectron2.structures import Boxes, Instances
from torch import nn

from instseg_d2 import methods
from instseg_d2.apps.compare import compare, join
from instseg_d2.apps.predict import run_demo
from instseg_d2.config import check_config as check_values
from instseg_d2.config import load_config
from instseg_d2.engine import Predictor, Trainer
from instseg_d2.engine.setup import argument_parser, setup
from instseg_d2.errors import ConfigError
from instseg_d2.export import ExportedPredictor, ParityError, export_verified
from instseg_d2.methods import Method, register_method
from instseg_d2.modeling import InstanceSegmenter
from instseg_d2.modeling.exportable import CanvasExportable, Found
from instseg_d2.modeling.ground_truth import canvas_masks
from instseg_d2.modeling.postprocessing import masks_to_boxes, resize_in_chunks
from instseg_d2.visualization import overlay_heatmap
from tests.scripts import registered_shapes, restore_logging  # noqa: F401 (a fixture)

# ---- the method ------------------------------------------------------------------------------------------------------


def add_config(cfg):
    cfg.MODEL.FIRST_COME = CfgNode({"NUM_SLOTS": 12, "NUM_CLASSES": 80, "CHANNELS": 16, "SCORE_THRESHOLD": 0.05})


def check_config(cfg):
    if cfg.MODEL.FIRST_COME.NUM_SLOTS < 1:
        raise ConfigError(f"MODEL.FIRST_COME.NUM_SLOTS is {cfg.MODEL.FIRST_COME.NUM_SLOTS}; it must be at least 1.")


@META_ARCH_REGISTRY.register()
class FirstCome(InstanceSegmenter):
    """Slot i learns the mask of the i-th object of every image, and its class from the features inside."""

    @configurable
    def __init__(self, *, num_slots, num_classes, score_threshold, **kwargs):
        super().__init__(**kwargs)
        channels = self.backbone.output_shape()["stem"].channels
        self.mask_head = nn.Conv2d(channels, num_slots, 3, padding=1)
        self.class_head = nn.Linear(channels, num_classes)
        self.score_threshold, self.max_detections = score_threshold, num_slots

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.FIRST_COME
        return {
            "backbone": ResNet(BasicStem(3, node.CHANNELS, norm="BN"), [], out_features=["stem"]),
            "num_slots": node.NUM_SLOTS,
            "num_classes": node.NUM_CLASSES,
            "score_threshold": node.SCORE_THRESHOLD,
            **cls.shared_arguments(cfg),
        }

    @property
    def size_divisibility(self):
        return 4

    def outputs(self, images):
        """Class logits (N, Q, K) and mask logits (N, Q, h, w)."""
        features = self.backbone(images.tensor)["stem"]
        masks = self.mask_head(features)
        inside = torch.einsum("nqhw,nchw->nqc", masks.sigmoid(), features)
        return self.class_head(inside / masks.sigmoid().sum((2, 3))[..., None]), masks

    def losses(self, images, batched_inputs):
        classes, masks = self.outputs(images)
        class_target, mask_target = torch.zeros_like(classes), torch.zeros_like(masks)
        for i, x in enumerate(self.gt_instances(batched_inputs)):
            x = x[: self.max_detections]
            class_target[i, torch.arange(len(x)), x.gt_classes] = 1
            mask_target[i, : len(x)] = canvas_masks([x], tuple(images.tensor.shape[-2:]), 4)
        return {
            "loss_class": F.binary_cross_entropy_with_logits(classes, class_target),
            "loss_mask": F.binary_cross_entropy_with_logits(masks, mask_target),
        }

    def infer(self, images):
        results = []
        for size, classes, masks in zip(images.image_sizes, *self.outputs(images)):
            scores, labels = classes.sigmoid().max(1)
            result = Instances(size, scores=scores, pred_classes=labels, pred_masks=masks.sigmoid())
            result.slots = torch.arange(len(scores), device=scores.device)
            results.append({"instances": result[scores > self.score_threshold]})
        return results

    def postprocess(self, result, size, masks=True):
        canvas = tuple(4 * side for side in result.pred_masks.shape[1:])
        full = resize_in_chunks(result.pred_masks, canvas, result.image_size, size, self.mask_threshold)
        boxes = Boxes(masks_to_boxes(full))
        return Instances(size, **{**result.get_fields(), "pred_masks": full, "pred_boxes": boxes})

    def explain(self, batched_inputs, max_instances=4):
        logits = self.outputs(self.preprocess(batched_inputs))[1][:, :max_instances].cpu().numpy()
        pairs = zip(map(self.rgb_image, batched_inputs), logits)
        return [[(f"slot {i}", overlay_heatmap(image, x)) for i, x in enumerate(maps)] for image, maps in pairs]


class ExportableFirstCome(CanvasExportable):
    free_size = True

    @property
    def detections(self):
        return self.model.max_detections

    def found(self, images, image_size):
        classes, masks = self.model.outputs(images)
        scores, labels = classes.sigmoid().max(-1)
        scores = torch.where(scores > self.model.score_threshold, scores, 0.0)
        return Found(scores, labels, None, masks.sigmoid())


def fit(model, cfg):
    if isinstance(model, FirstCome):
        nn.init.constant_(model.class_head.bias, -1.0)


RECORD = Method(
    "FirstCome",
    add_config=add_config,
    check_config=check_config,
    class_count_keys={"MODEL.FIRST_COME.NUM_CLASSES": 0},
    optimizer="ADAMW",
    needs_masks=True,
    fit=fit,
    authors_names={"first_come.": lambda state: {key[len("first_come.") :]: value for key, value in state.items()}},
    exportable=ExportableFirstCome,
)

# ---- what the package does with it -----------------------------------------------------------------------------------

DATA = "shapes_of_the_sixth_method"
RECIPE = f"""
MODEL:
  META_ARCHITECTURE: FirstCome
  DEVICE: cpu
  WEIGHTS: ""
  FIRST_COME:
    SCORE_THRESHOLD: 0.01
DATASETS:
  TRAIN: ("{DATA}_train",)
  TEST: ("{DATA}_val",)
INPUT:
  MIN_SIZE_TRAIN: (96,)
  MAX_SIZE_TRAIN: 128
  MIN_SIZE_TEST: 96
  MAX_SIZE_TEST: 128
SOLVER:
  IMS_PER_BATCH: 2
  MAX_ITER: 3
  BASE_LR: 0.01
DATALOADER:
  NUM_WORKERS: 0
SEED: 1
"""


@pytest.fixture(scope="module", autouse=True)
def registered(tmp_path_factory):
    """The method is registered only in this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(methods, "_METHODS", dict(methods._METHODS))
        register_method(RECORD)
        with registered_shapes(tmp_path_factory.mktemp("shapes"), **{f"{DATA}_train": 3, f"{DATA}_val": 4}):
            yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "first_come.yaml"
    path.write_text(RECIPE)
    return str(path)


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """The folder of a training, and its results."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train_net.py"])
        cfg = setup(argument_parser().parse_args(["--config-file", recipe, "OUTPUT_DIR", str(folder)]))
    trainer = Trainer(cfg)
    trainer.resume_or_load(False)
    before = [p.clone() for p in trainer.model.parameters()]
    trainer.train()
    assert (trainer.model.class_head.bias + 1).abs().max() < 0.1  # fitted, then trained a little
    assert all((p != old).any() for p, old in zip(trainer.model.parameters(), before))
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    return folder, trainer.results


@pytest.fixture(scope="module")
def predictor(run):
    return Predictor.from_checkpoint(str(run[0] / "model_final.pth"))


@pytest.fixture(scope="module")
def files():
    return [record["file_name"] for record in DatasetCatalog.get(f"{DATA}_val")][:2]


def test_it_is_small_and_the_package_does_not_know_it():
    lines = Path(__file__).read_text().split("# ---- ")[1].splitlines()
    assert sum(bool(line) for line in lines) < 100
    package = Path(inspect.getfile(methods)).parent
    assert not [path for path in package.rglob("*.py") if "first_come" in path.read_text().lower()]


def test_its_keys_are_checked(recipe):
    cfg = load_config(recipe, ["MODEL.FIRST_COME.NUM_SLOTS", "0"])
    with pytest.raises(ConfigError, match="NUM_SLOTS is 0; it must be at least 1"):
        check_values(cfg)


def test_it_is_trained_and_evaluated(run):
    folder, results = run
    assert set(results) >= {"segm", "bbox"}
    assert 0 <= results["segm"]["AP"] <= 100
    assert json.loads((folder / "inference" / "results.json").read_text())["segm"].keys() == results["segm"].keys()
    lines = (folder / "metrics.json").read_text().splitlines()
    assert {"loss_class", "loss_mask"} <= json.loads(lines[0]).keys()
    assert "MODEL.FIRST_COME.NUM_CLASSES was 80" in (folder / "log.txt").read_text()


def test_its_authors_file_is_read(run, predictor, files, tmp_path):
    data = torch.load(run[0] / "model_final.pth")
    data["model"] = {f"first_come.{key}": value for key, value in data["model"].items()}
    torch.save(data, tmp_path / "authors.pth")
    found = Predictor.from_checkpoint(str(tmp_path / "authors.pth"))(files[0])
    assert torch.equal(found.scores, predictor(files[0]).scores)


def test_it_is_drawn_and_explained(predictor, files, tmp_path):
    assert predictor.cfg.MODEL.FIRST_COME.NUM_CLASSES == len(predictor.class_names) == 6
    assert run_demo(predictor, files, str(tmp_path), score_threshold=0.02, explain=True)
    names = [Path(file).stem for file in files]
    assert {path.name for path in tmp_path.iterdir()} == {
        "images.json", "results.json", "run.json", "index.html",
        *(f"{n}.jpg" for n in names), *(f"{n}_explain.jpg" for n in names)
    }  # fmt: skip
    found = json.loads((tmp_path / "results.json").read_text())
    assert found
    assert {x["category_name"] for x in found} <= set(predictor.class_names)


def test_it_is_compared(recipe, run, tmp_path):
    weights = str(run[0] / "model_final.pth")
    contender = join("sixth", recipe, (None, f"{DATA}_val"), str(tmp_path), weights=weights)
    assert contender.results["segm"] == run[1]["segm"]
    table = compare([contender], f"{DATA}_val", str(tmp_path), num_images=1, repeats=1)
    assert "| sixth" in table
    (row,) = json.loads((tmp_path / "comparison.json").read_text())["models"]
    assert row["AP"] == pytest.approx(run[1]["segm"]["AP"])
    assert row["GFLOPs"] > 0


def test_it_is_exported_to_onnx(predictor, files, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    path = str(tmp_path / "model.onnx")
    parity = export_verified(predictor, path, "onnx", files, size=(96, 128))
    assert (parity.failure, parity.images) == ("", 2)
    exported = ExportedPredictor(path)
    assert exported.class_names == predictor.class_names
    assert len(exported(files[0])) > 2


@pytest.mark.parametrize("wrong", ["labels", "scores", "masks"])
def test_a_graph_that_is_not_the_method_is_not_kept(predictor, files, tmp_path, monkeypatch, wrong):
    class Wrong(ExportableFirstCome):
        def found(self, images, image_size):
            found = super().found(images, image_size)
            return found._replace(
                **{wrong: getattr(found, wrong).roll(1, dims=1) if wrong != "scores" else found.scores**2}
            )

    monkeypatch.setitem(methods._METHODS, "FirstCome", replace(RECORD, exportable=Wrong))
    with pytest.raises(ParityError, match=r"are missing|scores differ|a box differs|a mask has IoU"):
        export_verified(predictor, str(tmp_path / "model.pt2"), "pt2", files, size=(96, 128))
    assert not list(tmp_path.iterdir())


def test_it_is_exported_in_free_size_and_loaded_again(predictor, files, tmp_path):
    path = str(tmp_path / "model.pt2")
    parity = export_verified(predictor, path, "pt2", files, dynamic=True)
    assert (parity.failure, parity.images) == ("", 4)  # one, two, and the first one turned
    exported = ExportedPredictor(path, trust=True)
    for file in files:
        found, expected = exported(file), predictor(file)
        expected = expected[expected.scores.argsort(descending=True)]
        assert len(found) > 2
        torch.testing.assert_close(found.scores, expected.scores, atol=1e-3, rtol=0)
        assert torch.equal(found.pred_classes, expected.pred_classes)
        assert (found.pred_masks != expected.pred_masks).float().mean() < 1e-3
