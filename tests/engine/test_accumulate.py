"""SOLVER.ACCUMULATE: the same as a larger batch, step by step."""

import argparse

import pytest
import torch
from detectron2.utils import comm

from instseg_d2.engine import launch
from tests.engine.test_trainer import assert_equal
from tests.engine.toy_trainer import ToyTrainer, registered_toys, toy_cfg, toys, train  # noqa: F401 (a fixture)
from tests.processes import forking


class Plain(ToyTrainer):
    """Nothing random, no batch norm, losses that are means over the images."""

    @classmethod
    def build_model(cls, cfg):
        model = super().build_model(cfg)
        model.norm = torch.nn.Identity()

        def forward(batch):
            logits = model.head(model.conv(torch.stack([x["image"] for x in batch])).relu().mean((2, 3)))
            target = torch.tensor([x["target"] for x in batch])
            return {"loss_a": (logits[:, 0] - target).square().mean(), "loss_b": logits[:, 1].square().mean()}

        model.forward = forward
        return model

    def run_step(self):
        super().run_step()
        self.__dict__.setdefault("gradients", []).append([p.grad.clone() for p in self.model.parameters()])


class Joined(Plain):
    """Each batch is three of `Plain`'s in a row."""

    @classmethod
    def build_train_loader(cls, cfg, start_iteration=0, seed=None):
        batches = super().build_train_loader(cfg, 3 * start_iteration, seed)
        while True:
            yield [x for _ in range(3) for x in next(batches)]


@pytest.mark.parametrize("optimizer", ["SGD", "ADAMW"])
def test_equals_the_larger_batch(tmp_path, optimizer):
    """Gradients of all steps, learning rates, losses and final weights, although a run was interrupted."""
    options = {"OPTIMIZER": optimizer, "LR_SCHEDULER_NAME": "WarmupCosineLR"}
    joined = train(toy_cfg(tmp_path / "joined", **options), trainer_class=Joined)
    cfg = toy_cfg(tmp_path / "parts", ACCUMULATE=3, **options)
    first = train(cfg, trainer_class=Plain, stop_at=4)
    last = train(cfg, resume=True, seed=99, trainer_class=Plain)
    assert last.start_iter == 4
    for found, expected in zip(first.gradients[:4] + last.gradients, joined.gradients, strict=True):
        torch.testing.assert_close(found, expected)
    assert last.optimizer.param_groups[0]["lr"] == joined.optimizer.param_groups[0]["lr"]
    torch.testing.assert_close(dict(last.model.state_dict()), dict(joined.model.state_dict()))
    for name in ("loss_a", "total_loss"):
        found, expected = (trainer.storage.history(name).latest() for trainer in (last, joined))
        assert found == pytest.approx(expected, rel=1e-5)


def test_resumed_equals_uninterrupted(tmp_path):
    """With batch norms and random numbers, bit by bit."""
    train(toy_cfg(tmp_path / "whole", ACCUMULATE=2))
    halves = toy_cfg(tmp_path / "halves", ACCUMULATE=2)
    train(halves, stop_at=5)
    train(halves, resume=True, seed=99)
    a, b = (torch.load(tmp_path / run / "model_final.pth") for run in ("whole", "halves"))
    assert a.pop("cfg") != b.pop("cfg")  # the folder
    assert_equal(a, b)


def test_one_bad_batch_of_a_step(tmp_path):
    """The whole step is skipped, with its batch norms; the images of all its batches are kept."""
    cfg = toy_cfg(tmp_path, max_iter=1, ACCUMULATE=3)
    cfg.TEST.NAN_AT = (1,)
    before = ToyTrainer(cfg)
    trainer = train(cfg)
    assert torch.equal(trainer.model.norm.running_mean, before.model.norm.running_mean)
    assert not trainer.optimizer.state
    kept = torch.load(tmp_path / "bad_batch.pth")
    assert kept["iteration"] == 0
    assert len(kept["images"]) == 12


class Shared(Plain):
    """Each process has its share of a batch."""

    @classmethod
    def build_train_loader(cls, cfg, start_iteration=0, seed=None):
        for batch in super().build_train_loader(cfg, start_iteration, seed):
            yield batch[comm.get_rank() :: comm.get_world_size()]


def _train_shared(args):
    torch.set_num_threads(1)
    with toys():
        cfg = toy_cfg(args.folder, ACCUMULATE=3, CHECKPOINT_PERIOD=0)
        cfg.SEED, cfg.SOLVER.EMA.ENABLED = 3, True
        trainer = train(cfg, trainer_class=Shared)
        sums = [float(x.double().sum()) for network in trainer.networks for x in network.state_dict().values()]
        assert comm.all_gather(sums) == [sums] * comm.get_world_size()


def test_two_processes(tmp_path):
    """As one process: the trained weights and their average, which is the same in both."""
    processes = {"num_gpus": 0, "num_processes": 2, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    with forking("forkserver"):
        launch(_train_shared, argparse.Namespace(folder=tmp_path / "two", **processes))
    cfg = toy_cfg(tmp_path / "one", ACCUMULATE=3, CHECKPOINT_PERIOD=0)
    cfg.SEED, cfg.SOLVER.EMA.ENABLED = 3, True
    train(cfg, trainer_class=Shared)
    one, two = (torch.load(tmp_path / name / "model_final.pth") for name in ("one", "two"))
    torch.testing.assert_close(two["model"], one["model"])
    torch.testing.assert_close(two["trainer"]["trained_model"], one["trainer"]["trained_model"])
