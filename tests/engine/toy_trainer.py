"""A toy model, data set and trainer that draw all kinds of random numbers; a run takes milliseconds."""

import contextlib
import math
import random

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import nn

from instseg_d2.config import get_cfg
from instseg_d2.engine import Trainer

DATA = "toy_trainer_images"


class ToyTrainerNet(nn.Module):
    """Draws all kinds of random numbers in training, so that inexact resuming shows."""

    def __init__(self, cfg):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)  # a matrix to Muon
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 2)

    def forward(self, batch):
        images = torch.stack([x["image"] for x in batch])
        features = torch.dropout(self.norm(self.conv(images)).relu().mean((2, 3)), 0.5, self.training)
        logits = self.head(features)
        if not self.training:
            empty = Instances((8, 8), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
            return [{"instances": empty} for _ in batch]
        noise = random.random() + np.random.rand()
        target = torch.tensor([x["target"] for x in batch])
        return {"loss_a": (logits[:, 0] - target).square().mean(), "loss_b": (logits[:, 1] - noise).square().mean()}


class Metric(DatasetEvaluator):
    """Returns the values set by the test, one after the other."""

    values = ()
    task = "segm"

    def evaluate(self):
        value, *Metric.values = Metric.values
        return {self.task: {"AP": value}}


class ToyTrainer(Trainer):
    """Batch n has the same images wherever the stream starts."""

    @classmethod
    def build_train_loader(cls, cfg, start_iteration=0, seed=None):
        iteration = start_iteration
        while True:
            generator = torch.Generator().manual_seed(seed + iteration)
            images = torch.randn(4, 3, 8, 8, generator=generator)
            bad = iteration in cfg.TEST.get("NAN_AT", ())
            targets = [math.nan if bad else float(i) for i in range(4)]
            yield [{"image": x, "target": t, "file_name": f"{i}.jpg"} for i, (x, t) in enumerate(zip(images, targets))]
            iteration += 1

    @classmethod
    def build_test_loader(cls, cfg, name):
        torch.rand(3)  # evaluation may draw random numbers; training must not notice
        return [[{"image": torch.zeros(3, 8, 8), "image_id": 0}]]

    @classmethod
    def build_evaluator(cls, cfg, name, output_dir):
        return Metric()


@contextlib.contextmanager
def toys():
    """The model and the data set are registered in the block."""
    if "ToyTrainerNet" not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(ToyTrainerNet)
    DatasetCatalog.register(DATA, list)
    MetadataCatalog.get(DATA).set(thing_classes=["disc", "square"])
    yield
    DatasetCatalog.remove(DATA)
    MetadataCatalog.pop(DATA)


@pytest.fixture(autouse=True)
def registered_toys():
    with toys():
        yield


def toy_cfg(folder, max_iter=6, test=False, **solver):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "ToyTrainerNet"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (DATA,), (DATA,) if test else ()
    cfg.OUTPUT_DIR = str(folder)
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.CHECKPOINT_PERIOD = max_iter, 2
    cfg.SOLVER.BASE_LR, cfg.SOLVER.STEPS, cfg.SOLVER.WARMUP_ITERS = 0.05, (4,), 3
    for key, value in solver.items():
        cfg.SOLVER[key] = value
    return cfg


def train(cfg, resume=False, seed=0, stop_at=None, trainer_class=None):
    """Train and return the trainer; ``stop_at``: interrupt it in that iteration."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    trainer = (trainer_class or ToyTrainer)(cfg)
    trainer.resume_or_load(resume)
    if stop_at is not None:
        step = trainer.run_step

        def interrupted():
            if trainer.iter == stop_at:
                raise KeyboardInterrupt
            step()

        trainer.run_step = interrupted
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
    else:
        trainer.train()
    return trainer
