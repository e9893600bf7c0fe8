"""train --minutes on a clock that the test moves: the schedule, what is left alone, and resuming."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from instseg_d2.commands import parse
from instseg_d2.commands.train import work
from instseg_d2.config import get_cfg
from instseg_d2.config.schedule import rescale
from instseg_d2.engine import fit_to_minutes, minutes
from instseg_d2.errors import ConfigError
from tests.engine.toy_trainer import ToyTrainer, registered_toys, toy_cfg, train  # noqa: F401 (a fixture)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    clock.perf_counter = lambda: clock.now
    monkeypatch.setattr("instseg_d2.engine.minutes.time", clock)
    return clock


def timed_trainer(clock, slow_steps=3):
    """
    2 s to build; 5 s for each of the first steps, then 0.5 s; 1 s for a batch of precise statistics; 3 s for the first
    image of five, then 0.25 s.
    """

    class Timed(ToyTrainer):
        steps = 0

        @classmethod
        def build_model(cls, cfg):
            clock.now += 2
            model = super().build_model(cfg)
            images = []

            def looked(module, args, output):
                if not module.training:
                    clock.now += 0.25 if images else 3
                    images.append(args)
                elif not torch.is_grad_enabled():
                    clock.now += 1

            model.register_forward_hook(looked)
            return model

        @classmethod
        def build_test_loader(cls, cfg, name):
            return super().build_test_loader(cfg, name) * 5

        def run_step(self):
            super().run_step()
            self.steps += 1
            clock.now += 5 if self.steps <= slow_steps else 0.5

    return Timed


def test_schedule(tmp_path, clock):
    """
    2 minutes, of which 4 s have passed. Measuring takes 2 s, 15 s, 12 steps of 0.5 s (5 % of the time) and 4 s.
    Building again takes 2 s, and three evaluations 1.25 s each. 77.25 s are left of 95 % of the time.
    """
    cfg = toy_cfg(tmp_path, test=True, FREEZE_NORMS_ITER=5, EMA=CfgNode({"ENABLED": True, "DECAY": 0.9}))
    cfg.TEST.EVAL_PERIOD = 2
    cfg.freeze()
    text, before = cfg.dump(), torch.get_rng_state()
    clock.now = 104.0
    fitted = fit_to_minutes(cfg, 2, 100.0, trainer_class=timed_trainer(clock))
    assert clock.now == 104 + 2 + 15 + 6 + 4
    assert torch.equal(torch.get_rng_state(), before)
    assert cfg.dump() == text
    solver = fitted.SOLVER
    assert solver.MAX_ITER == 154
    assert (*solver.STEPS, solver.WARMUP_ITERS, solver.FREEZE_NORMS_ITER, fitted.TEST.EVAL_PERIOD) == (103, 77, 129, 52)
    assert not list(tmp_path.iterdir())

    changed = {"MAX_ITER", "STEPS", "WARMUP_ITERS", "FREEZE_NORMS_ITER"}
    fitted.defrost()
    for key in changed:
        fitted.SOLVER[key] = cfg.SOLVER[key]
    fitted.TEST.EVAL_PERIOD = 2
    assert fitted.dump() == text


@pytest.mark.parametrize("slow_steps", [5, 6])
def test_steps_of_new_image_sizes_do_not_count(tmp_path, clock, slow_steps):
    """20 minutes: 60 s of steps are measured, after 30 s of others (6 of 5 s, or 5 of 5 s and 10 of 0.5 s)."""
    cfg = toy_cfg(tmp_path)
    cfg.freeze()
    fitted = fit_to_minutes(cfg, 20, 0.0, trainer_class=timed_trainer(clock, slow_steps))
    assert clock.now == 2 + 30 + 60
    assert fitted.SOLVER.MAX_ITER == (0.95 * 1200 - 92 - 2) / 0.5


def test_a_training_that_another_command_starts(tmp_path, clock):
    """The time that measuring takes is not taken from the training: only building it, 2 s."""
    cfg = toy_cfg(tmp_path)
    cfg.freeze()
    clock.now = 50.0
    fitted = fit_to_minutes(cfg, 2, trainer_class=timed_trainer(clock))
    assert fitted.SOLVER.MAX_ITER == (0.95 * 120 - 2) / 0.5


def test_sizes_that_are_drawn_by_chance(tmp_path, clock):
    """
    Every third batch is large and takes 4 s, the others 1 s. Three steps warm up (6 s); of the next five, two are large
    (11 s). On average a step takes 2 s, not 2.2.
    """

    class Sized(ToyTrainer):
        count = 0

        @classmethod
        def build_train_loader(cls, cfg, start_iteration=0, seed=None):
            for number in itertools.count():
                side = 8 if number % 3 else 16
                yield [{"image": torch.rand(3, side, side), "target": 0.0, "file_name": "a.jpg"} for _ in range(4)]

        def run_step(self):
            clock.now += 1 if self.count % 3 else 4
            self.count += 1
            super().run_step()

    cfg = toy_cfg(tmp_path)
    cfg.freeze()
    fitted = fit_to_minutes(cfg, 2, 0.0, trainer_class=Sized)
    assert clock.now == 6 + 11
    assert fitted.SOLVER.MAX_ITER == int((0.95 * 120 - 17) / 2)


@pytest.mark.parametrize(
    ("seconds", "pixels", "expected"),
    [
        ([1, 2, 3], [10, 20, 30], 1.5),
        ([2, 2.5, 3], [10, 20, 30], 2.25),  # 1.5 whatever the size
        ([5, 3, 4], [20, 20, 20], 4),
        ([3, 2, 1], [10, 20, 30], 2),  # larger batches are not faster
        ([1, 2, 9], [10, 20, 30], 3),  # at most proportional
    ],
)
def test_a_typical_step(seconds, pixels, expected):
    assert minutes._typical_seconds(seconds, pixels, 15) == pytest.approx(expected)


def test_precise_statistics_take_time(tmp_path, clock):
    """2 minutes: 2 s, 15 s and 6 s as above, 4 batches for the statistics; then 2 s, and 20 such batches."""
    cfg = toy_cfg(tmp_path)
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = True, 20
    cfg.freeze()
    fitted = fit_to_minutes(cfg, 2, 0.0, trainer_class=timed_trainer(clock))
    assert clock.now == 2 + 15 + 6 + 4
    assert fitted.SOLVER.MAX_ITER == (0.95 * 120 - 27 - 2 - 20) / 0.5


def test_images_with_more_tiles_take_longer(clock, monkeypatch):
    """A second for each tile; 8 images with one tile, which are measured, and 8 with 3 x 2: 56 s, not 16."""
    sizes = [(64, 64)] * 8 + [(96, 128)] * 8
    records = [{"height": height, "width": width} for height, width in sizes]
    DatasetCatalog.register("minutes_tiles", lambda: records)

    def run(batch):
        clock.now += 1 if batch[0]["width"] == 64 else 6

    monkeypatch.setattr(minutes, "model_for_test", lambda cfg, model: model)
    monkeypatch.setattr(minutes, "detector", lambda model, masks: run)
    trainer = SimpleNamespace(networks=[None], build_test_loader=lambda cfg, name: [[record] for record in records])
    cfg = get_cfg()
    cfg.DATASETS.TEST, cfg.TEST.TILE.SIZE = ("minutes_tiles",), 64
    assert minutes._evaluation_seconds(cfg, trainer, 100.0) == 56
    sized, records[:] = list(records), [{"file_name": "a.png"}]  # a data set need not know its sizes
    trainer.build_test_loader = lambda cfg, name: [[record] for record in sized]
    assert minutes._evaluation_seconds(cfg, trainer, 100.0) == 16
    cfg.TEST.TILE.SIZE = 0
    assert minutes._evaluation_seconds(cfg, trainer, 100.0) == 16
    DatasetCatalog.remove("minutes_tiles")


def test_values_that_mean_never_stay(tmp_path):
    cfg = toy_cfg(tmp_path, max_iter=100, STEPS=(), WARMUP_ITERS=0)
    cfg.freeze()
    fitted = rescale(cfg, 7)
    assert (fitted.SOLVER.MAX_ITER, fitted.SOLVER.STEPS, fitted.SOLVER.WARMUP_ITERS) == (7, (), 0)
    assert (fitted.SOLVER.FREEZE_NORMS_ITER, fitted.TEST.EVAL_PERIOD) == (-1, 0)


def test_keys_that_stay(tmp_path):
    cfg = toy_cfg(tmp_path, max_iter=100, FREEZE_BACKBONE_ITER=30, FREEZE_NORMS_ITER=60)
    cfg.freeze()
    fitted = rescale(cfg, 50, ["SOLVER.FREEZE_BACKBONE_ITER"])
    assert (fitted.SOLVER.FREEZE_BACKBONE_ITER, fitted.SOLVER.FREEZE_NORMS_ITER) == (30, 30)


def test_steps_of_a_short_schedule_stay_in_it(tmp_path):
    cfg = toy_cfg(tmp_path, max_iter=1000, STEPS=(600, 610, 1000))
    cfg.freeze()
    assert rescale(cfg, 10).SOLVER.STEPS == (6, 7, 10)
    assert rescale(cfg, 2).SOLVER.STEPS == (2,)


def test_too_short(tmp_path, clock):
    cfg = toy_cfg(tmp_path)
    cfg.freeze()
    with pytest.raises(
        ConfigError, match=r"^--minutes 0\.25 is too short: here, everything but .* 0\.36 minutes, and an"
    ):
        fit_to_minutes(cfg, 0.25, 0.0, trainer_class=timed_trainer(clock))


def test_a_resumed_run_keeps_its_schedule(tmp_path, clock):
    cfg = toy_cfg(tmp_path)
    cfg.freeze()
    fitted = fit_to_minutes(cfg, 1, 0.0, trainer_class=timed_trainer(clock))
    assert fitted.SOLVER.MAX_ITER > 6
    train(fitted, stop_at=4)
    assert (tmp_path / "config.yaml").read_text() == fitted.dump()
    assert fit_to_minutes(cfg, 9, 0.0, resume=True, trainer_class=None).dump() == fitted.dump()


def test_a_recipe_for_more_processes(tmp_path, clock):
    """Detectron2 doubles its schedule for half of the processes; what is fitted stays."""
    cfg = toy_cfg(tmp_path, REFERENCE_WORLD_SIZE=2)
    cfg.freeze()
    trainer = timed_trainer(clock)
    fitted = fit_to_minutes(cfg, 1, 0.0, trainer_class=trainer)
    assert fitted.SOLVER.IMS_PER_BATCH == cfg.SOLVER.IMS_PER_BATCH // 2
    assert fitted.SOLVER.MAX_ITER == (0.95 * 60 - 2 - 15 - 3 - 2) / 0.5
    assert trainer(fitted).cfg == fitted


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "soon"])
def test_no_number_of_minutes(minutes, capsys):
    with pytest.raises(SystemExit):
        parse("train", ["--minutes", minutes])
    assert "argument --minutes: " in capsys.readouterr().err


def test_minutes_of_an_evaluation():
    with pytest.raises(ConfigError, match="--minutes is about training"):
        work(parse("train", ["--minutes", "5", "--eval-only"]))
