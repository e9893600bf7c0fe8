"""The training loop with a toy model on a toy data set: resuming, checkpoints, the best one, failures."""

import copy
import json
import logging
import math
import os
import re

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import PolygonMasks
from torch import nn

from instseg_d2.checkpoint import read_extra
from instseg_d2.config import get_cfg
from instseg_d2.data import make_shapes, register_coco
from instseg_d2.engine import Trainer
from instseg_d2.engine.bad_steps import BadSteps, keep_batch
from instseg_d2.engine.earlier_run import truncate_metrics
from instseg_d2.engine.log import PROGRESS_LOGGER
from instseg_d2.errors import ConfigError
from instseg_d2.inference import precision
from tests.engine.toy_trainer import Metric, ToyTrainer, registered_toys, toy_cfg, train  # noqa: F401 (a fixture)
from tests.tiny import random_batch, tiny_config


def assert_equal(a, b):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW", "MUON"])
@pytest.mark.parametrize("test", [False, True])
def test_resumed_equals_uninterrupted(tmp_path, optimizer, test):
    """Bit by bit: weights, momenta, schedule, generators; also with an evaluation in between."""
    Metric.values = [1.0] * 8
    options = {"OPTIMIZER": optimizer, "LR_SCHEDULER_NAME": "WarmupCosineLR"}
    whole = toy_cfg(tmp_path / "whole", test=test, **options)
    whole.TEST.EVAL_PERIOD = 2
    train(whole)

    halves = toy_cfg(tmp_path / "halves", test=test, **options)
    halves.TEST.EVAL_PERIOD = 2
    train(halves, stop_at=5)  # the last checkpoint is that of iteration 3
    resumed = train(halves, resume=True, seed=99)
    assert resumed.start_iter == 4

    a, b = (torch.load(tmp_path / run / "model_final.pth") for run in ("whole", "halves"))
    assert a["iteration"] == 5
    assert a.pop("cfg") != b.pop("cfg")  # the folder
    assert_equal(a, b)


def test_resuming_with_other_groups_is_refused(tmp_path):
    train(toy_cfg(tmp_path), stop_at=3)
    with pytest.raises(ConfigError, match="grouped its parameters otherwise"):
        train(toy_cfg(tmp_path, WEIGHT_DECAY_BIAS=0.125), resume=True)


@pytest.mark.parametrize(("before", "after"), [("ADAMW", "MUON"), ("MUON", "ADAMW"), ("SGD", "ADAMW")])
def test_resuming_with_another_optimizer_is_refused(tmp_path, before, after):
    train(toy_cfg(tmp_path, OPTIMIZER=before), stop_at=3)
    with pytest.raises(ConfigError, match=r"another SOLVER.OPTIMIZER than .*OUTPUT_DIR"):
        train(toy_cfg(tmp_path, OPTIMIZER=after), resume=True)


class WithoutNorms(ToyTrainer):
    """Its model has no trainable batch norm."""

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        model.norm = torch.nn.Identity()
        return model


def test_precise_statistics_without_a_norm(tmp_path):
    cfg = toy_cfg(tmp_path, max_iter=2)
    cfg.TEST.PRECISE_BN.ENABLED = True
    train(cfg, trainer_class=WithoutNorms)
    assert (tmp_path / "model_final.pth").is_file()


def test_files_and_the_content_of_checkpoints(tmp_path):
    cfg = toy_cfg(tmp_path)
    train(cfg)
    names = {"model_0000001.pth", "model_0000003.pth", "model_final.pth", "last_checkpoint", "metrics.json"}
    assert names <= set(os.listdir(tmp_path))
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    extra = read_extra(str(tmp_path / "model_final.pth"))
    assert extra["class_names"] == ["disc", "square"]
    assert extra["cfg"] == cfg.dump()
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    last = lines[-1]
    assert last["iteration"] == 5
    assert last["total_loss"] == pytest.approx(last["loss_a"] + last["loss_b"], rel=0.5)  # medians
    assert {"lr", "data_time"} <= last.keys()


def test_best_checkpoint(tmp_path, caplog):
    """It has the highest value, never nan; a resumed run knows it; resuming does not start from it."""
    cfg = toy_cfg(tmp_path, max_iter=6, test=True)
    cfg.TEST.EVAL_PERIOD = 1
    Metric.values = [math.nan, 3.0, 2.0, 2.5, 4.0]
    train(cfg, stop_at=4)  # the last checkpoint is that of iteration 3
    best = read_extra(str(tmp_path / "model_best.pth"))
    assert best["best"] == {"metric": "segm/AP", "value": 3.0, "iteration": 1}
    assert "trainer" not in best
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000003.pth"

    Metric.values = [2.75, 2.9]
    train(cfg, resume=True)
    assert read_extra(str(tmp_path / "model_best.pth"))["best"]["value"] == 3.0

    Metric.values = [0.5] * 6
    train(cfg)  # a fresh run has its own best
    assert read_extra(str(tmp_path / "model_best.pth"))["best"]["value"] == 0.5
    assert json.loads((tmp_path / "inference" / "results.json").read_text()) == {"segm": {"AP": 0.5}}


def test_best_boxes_of_a_model_without_masks(tmp_path, monkeypatch):
    monkeypatch.setattr(Metric, "task", "bbox")
    Metric.values = [1.0]
    train(toy_cfg(tmp_path, max_iter=2, test=True))
    assert read_extra(str(tmp_path / "model_best.pth"))["best"] == {"metric": "bbox/AP", "value": 1.0, "iteration": 1}


def test_unknown_best_metric_warns(tmp_path, caplog):
    cfg = toy_cfg(tmp_path, max_iter=2, test=True)
    cfg.TEST.BEST_METRIC = "sem_seg/mIoU"
    Metric.values = [1.0]
    train(cfg)
    assert "TEST.BEST_METRIC sem_seg/mIoU is not among the results" in caplog.text
    assert not (tmp_path / "model_best.pth").exists()


def test_it_says_how_it_starts(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cfg = toy_cfg(tmp_path, max_iter=2)
    train(cfg, resume=True)
    assert f"Nothing to resume in {tmp_path}: starting a new run." in caplog.text
    train(cfg, resume=True)
    assert "after 2 iterations" in caplog.text
    assert "All 2 iterations are done; to train longer, raise SOLVER.MAX_ITER" in caplog.text
    train(cfg)
    assert f"Starting a new run in {tmp_path}." in caplog.text
    assert f"The results of the earlier run were moved to {tmp_path}/earlier." in caplog.text


def test_progress_lines(tmp_path, caplog):
    """Every 20 iterations and after the last; none for an iteration that failed."""
    caplog.set_level(logging.INFO, PROGRESS_LOGGER)
    train(toy_cfg(tmp_path / "done", max_iter=41, CHECKPOINT_PERIOD=100))
    cfg = toy_cfg(tmp_path / "failed", max_iter=41, CHECKPOINT_PERIOD=100)
    cfg.TEST.NAN_AT = tuple(range(22, 32))
    with pytest.raises(FloatingPointError):
        train(cfg)
    lines = [r.getMessage() for r in caplog.records if r.name == PROGRESS_LOGGER]
    assert [line.split("  ")[0] for line in lines] == [f"iter {i}/41" for i in (20, 40, 41, 20, 22)]
    number = r"[-+.e\d]+"
    assert re.fullmatch(
        rf"iter 20/41  total_loss {number}  loss_a {number}  loss_b {number}  lr {number}  {number} it/s  "
        r"time left 0:00:0\d",
        lines[0],
    )


def test_steps_with_a_bad_loss_are_skipped(tmp_path, caplog):
    """Weights, statistics and optimiser are those of a run without the step; the batch is saved."""
    cfg = toy_cfg(tmp_path)
    cfg.TEST.NAN_AT = (3,)
    before = []

    class Watched(ToyTrainer):
        def run_step(self):
            def state():
                return copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()["state"]))

            before.append(state())
            super().run_step()
            before.append(state())

    train(cfg, trainer_class=Watched)

    def same(number):
        (a, b), (c, d) = before[2 * number], before[2 * number + 1]
        tensors = zip((*a.values(), *(t for s in b.values() for t in s.values())),
                      (*c.values(), *(t for s in d.values() for t in s.values())))  # fmt: skip
        return all(torch.equal(x, y) for x, y in tensors if isinstance(x, torch.Tensor))

    assert [same(number) for number in range(6)] == [False, False, False, True, False, False]
    assert "iteration 3 (loss_a = nan, loss_b = " in caplog.text
    assert "images 0.jpg, 1.jpg, 2.jpg, 3.jpg: the step is skipped (1 in a row)" in caplog.text
    kept = torch.load(tmp_path / "bad_batch.pth")
    assert kept["iteration"] == 3
    assert [x["file_name"] for x in kept["images"]] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert kept["images"][0]["image"].shape == (3, 8, 8)
    metrics = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert all(math.isfinite(row["total_loss"]) for row in metrics if "total_loss" in row)


def test_steps_with_a_bad_gradient_are_skipped(tmp_path, caplog):
    """With finite losses: the square root of 0 has an infinite slope."""
    cfg = toy_cfg(tmp_path)

    class Steep(ToyTrainer):
        @classmethod
        def build_model(cls, cfg):
            model = super().build_model(cfg)
            forward = model.forward

            def steep(batch):
                losses = forward(batch)
                if model.training and steep.calls == 3:
                    losses["loss_b"] = (losses["loss_b"] * 0).sqrt()
                steep.calls += model.training
                return losses

            steep.calls = 0
            model.forward = steep
            return model

    trainer = train(cfg, trainer_class=Steep)
    assert "a loss or gradient is not finite at iteration 3 (loss_a = " in caplog.text
    assert "on the images 0.jpg, 1.jpg, 2.jpg, 3.jpg" in caplog.text
    assert all(p.isfinite().all() for p in trainer.model.parameters())
    assert torch.load(tmp_path / "bad_batch.pth")["iteration"] == 3


def test_a_bad_step_after_precise_statistics(tmp_path):
    """Which replace the norm's buffers by new tensors."""
    norm = nn.BatchNorm2d(2)
    steps = BadSteps(norm, str(tmp_path))
    steps.before_step()
    norm.running_mean = torch.ones(2)
    steps.before_step()
    norm(torch.full((1, 2, 3, 3), math.nan))
    steps.skip(0, {"loss": math.nan}, {"loss": torch.tensor(math.nan)}, [])
    assert norm.running_mean.tolist() == [1, 1]


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_what_is_kept_of_a_bad_batch(tmp_path, mask_format):
    (sample,) = random_batch([2], 24, 32)
    if mask_format == "polygon":
        polygons = [[np.array([1.0, 2.0, 9.0, 2.0, 9.0, 8.0])]] * 2
        sample["instances"].gt_masks = PolygonMasks(polygons)
    keep_batch(tmp_path, 5, {"loss": math.nan}, [{**sample, "basis_sem": torch.ones(6, 8), "file_name": "a.jpg"}])
    kept = torch.load(tmp_path / "bad_batch.pth")
    (image,) = kept["images"]
    assert kept["iteration"] == 5
    assert torch.equal(image["image"], sample["image"])
    assert torch.equal(image["boxes"], sample["instances"].gt_boxes.tensor)
    assert torch.equal(image["classes"], sample["instances"].gt_classes)
    assert torch.equal(image["basis_sem"], torch.ones(6, 8))
    if mask_format == "polygon":
        assert image["polygons"] == [[[1.0, 2.0, 9.0, 2.0, 9.0, 8.0]]] * 2
    else:
        assert torch.equal(image["masks"], sample["instances"].gt_masks.tensor)


def test_a_run_killed_in_its_last_evaluation(tmp_path):
    """All iterations are done: the resumed run evaluates, saves the best and writes the metrics without training."""
    cfg = toy_cfg(tmp_path, test=True)
    Metric.values = []  # the evaluation fails
    with pytest.raises(ValueError, match="not enough values"):
        train(cfg)
    final = torch.load(tmp_path / "model_final.pth")["model"]
    assert not (tmp_path / "model_best.pth").exists()
    Metric.values = [7.0]
    resumed = train(cfg, resume=True)
    assert resumed.start_iter == 6
    best = torch.load(tmp_path / "model_best.pth")
    assert best["best"] == {"metric": "segm/AP", "value": 7.0, "iteration": 5}
    assert all(torch.equal(best["model"][key], value) for key, value in final.items())
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [row.get("segm/AP") for row in rows] == [None, 7.0]


def test_only_lines_of_later_iterations_are_cut(tmp_path):
    path = tmp_path / "metrics.json"
    rows = [json.dumps({"iteration": n}) for n in (19, 17, 23, 18, 30)]
    path.write_text("\n".join(rows) + '\n{"iteration": 1')  # the last line was not finished
    truncate_metrics(str(path), 20)
    assert path.read_text() == "\n".join(rows[i] for i in (0, 1, 3)) + "\n"
    truncate_metrics(str(path), 100)
    assert len(path.read_text().splitlines()) == 3
    truncate_metrics(str(tmp_path / "none.json"), 1)


def test_ten_bad_losses_in_a_row_end_the_training(tmp_path, caplog):
    cfg = toy_cfg(tmp_path, max_iter=30, CHECKPOINT_PERIOD=4)
    cfg.TEST.NAN_AT = (2, 3, *range(5, 14), *range(15, 25))
    with pytest.raises(FloatingPointError, match=r"iteration 24 .*images 0\.jpg.* in the 9 iterations before"):
        train(cfg)
    assert "(9 in a row)" in caplog.text
    assert "Training stopped at iteration 24" in caplog.text
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000023.pth"
    state = torch.load(tmp_path / "model_0000023.pth")["model"]
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_mixed_precision_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_cpu_has_bfloat16", lambda: True)
    cfg = toy_cfg(tmp_path, AMP=get_cfg().SOLVER.AMP)
    cfg.SOLVER.AMP.ENABLED = True
    trainer = ToyTrainer(cfg)
    seen = []
    trainer.model.head.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    trainer.train()
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_convolutions_are_channels_last(tmp_path):
    trainer = ToyTrainer(toy_cfg(tmp_path))
    assert trainer.model.conv.weight.is_contiguous(memory_format=torch.channels_last)


TRAINING_ONLY = [
    "MODEL.AUXILIARY.WEIGHT", 1.0,
    "MODEL.SPARSE_INST.DECODER.NORM", "BN",
    "MODEL.SPARSE_INST.LOSS.PILOTS", 2,
]  # fmt: skip


def test_a_real_run_resumes_exactly(tmp_path):
    """
    SparseInst on drawn shapes with augmentation and with what only training has (random pilots, an auxiliary head), one
    loader process, SEED unset.
    """
    make_shapes(tmp_path / "shapes", "train", 8, seed=5)
    register_coco("toy_resume_shapes", tmp_path / "shapes" / "train.json", tmp_path / "shapes" / "images")

    def cfg(folder, opts):
        cfg = tiny_config("SparseInst", *TRAINING_ONLY, *opts, num_classes=6)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("toy_resume_shapes",), ()
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (64, 96), 128
        cfg.MODEL.MASK_ON, cfg.INPUT.MASK_FORMAT, cfg.DATALOADER.NUM_WORKERS = True, "bitmask", 1
        cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = 2, 4, 2
        cfg.OUTPUT_DIR = str(tmp_path / folder)
        return cfg

    def run(folder, stop_at=None, resume=False, opts=()):
        return train(cfg(folder, opts), resume, seed=7, stop_at=stop_at, trainer_class=Trainer)

    run("whole")
    run("halves", stop_at=3)
    run("halves", resume=True)
    a, b = (torch.load(tmp_path / folder / "model_final.pth") for folder in ("whole", "halves"))
    assert_equal(a["model"], b["model"])
    assert_equal(a["trainer"], b["trainer"])
    assert not [name for name in a["model"] if "auxiliary" in name]
    assert len(a["trainer"]["training_only"]) > 5
    with pytest.raises(ConfigError, match=r"had another MODEL\.AUXILIARY: resume with its config\.yaml"):
        run("halves", resume=True, opts=["MODEL.AUXILIARY.WEIGHT", 0.0])
    DatasetCatalog.remove("toy_resume_shapes")
    MetadataCatalog.pop("toy_resume_shapes")


class BodyAndHead(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.bottom_up = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.backbone.fpn = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 1)

    def forward(self, batch):
        features = self.backbone.fpn(self.backbone.bottom_up(torch.stack([x["image"] for x in batch])))
        return {"loss": self.head(features.mean((2, 3))).square().mean()}


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW", "MUON"])
def test_the_backbone_is_trained_late(tmp_path, monkeypatch, optimizer):
    """Also when resumed while it is frozen; the weights that an FPN adds are trained from the start."""
    monkeypatch.setattr(Watching, "build_model", classmethod(lambda cls, cfg: BodyAndHead(cfg)))
    cfg = toy_cfg(tmp_path / "whole", FREEZE_BACKBONE_ITER=3, OPTIMIZER=optimizer, WEIGHT_DECAY=0.1)
    whole = train(cfg, trainer_class=Watching)
    states = whole.states
    for name in states[0]:
        if name.endswith("num_batches_tracked"):
            continue
        changes = [not torch.equal(a[name], b[name]) for a, b in zip(states[:-1], states[1:])]
        assert changes == ([False] * 3 + [True] * 3 if "bottom_up" in name else [True] * 6), name
    cfg.OUTPUT_DIR = str(tmp_path / "resumed")
    train(cfg, stop_at=2, trainer_class=Watching)
    assert_equal(train(cfg, resume=True, trainer_class=Watching).model.state_dict(), whole.model.state_dict())


class Watching(ToyTrainer):
    """Keeps the weights before and after each step."""

    def run_step(self):
        copied = lambda: {k: v.clone() for k, v in self.model.state_dict().items()}  # noqa: E731
        self.states = getattr(self, "states", None) or [copied()]
        super().run_step()
        self.states.append(copied())


def test_a_model_without_a_backbone_has_nothing_to_freeze(tmp_path):
    with pytest.raises(ConfigError, match="FREEZE_BACKBONE_ITER must be 0: ToyTrainerNet has no backbone"):
        ToyTrainer(toy_cfg(tmp_path, FREEZE_BACKBONE_ITER=3))


def test_norms_freeze_late(tmp_path):
    """The running statistics stop at that iteration, also when resumed; the weights do not."""
    cfg = toy_cfg(tmp_path / "whole", FREEZE_NORMS_ITER=3)
    means, weights = [], []

    class Watched(ToyTrainer):
        def run_step(self):
            super().run_step()
            means.append(self.model.norm.running_mean.clone())
            weights.append(self.model.norm.weight.detach().clone())

    whole = train(cfg, trainer_class=Watched)
    changes = [not torch.equal(a, b) for a, b in zip(means[:-1], means[1:])]
    assert changes == [True, True, False, False, False]
    assert not any(torch.equal(a, b) for a, b in zip(weights[:-1], weights[1:]))
    cfg.OUTPUT_DIR = str(tmp_path / "resumed")
    train(cfg, stop_at=4)
    assert_equal(train(cfg, resume=True).model.state_dict(), whole.model.state_dict())
