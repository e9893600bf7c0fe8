"""SOLVER.EMA: what is averaged, when, evaluated, saved and resumed."""

import copy

import pytest
import torch

from instseg_d2.config import get_cfg
from instseg_d2.engine.averaging import AveragedModel
from tests.engine.test_trainer import assert_equal
from tests.engine.toy_trainer import Metric, ToyTrainer, registered_toys, toy_cfg, train  # noqa: F401 (a fixture)


def ema_cfg(folder, decay=0.3, **kwargs):
    cfg = toy_cfg(folder, **kwargs)
    cfg.SOLVER.EMA.ENABLED, cfg.SOLVER.EMA.DECAY = True, decay
    return cfg


class Recording(ToyTrainer):
    """Keeps the weights after every step, and what is evaluated."""

    evaluated = ()  # a list in the test

    def run_step(self):
        super().run_step()
        self.__dict__.setdefault("steps", []).append(copy.deepcopy(self.model.state_dict()))

    @classmethod
    def test(cls, cfg, model):
        cls.evaluated.append(copy.deepcopy(model.state_dict()))
        return super().test(cfg, model)


def average_by_hand(states, limit):
    """In float64, from the definition; the first state is taken as it is."""
    result = {key: value.double() for key, value in states[0].items()}
    for t, state in enumerate(states[1:], 1):
        d = min(limit, (1 + t) / (10 + t))
        for key, value in state.items():
            whole = not value.is_floating_point()
            result[key] = value.double() if whole else d * result[key] + (1 - d) * value.double()
    return result


@pytest.mark.parametrize(
    ("decay", "options"), [(0.3, {}), (0.999, {}), (0.3, {"FREEZE_NORMS_ITER": 3}), (0.3, {"NAN_AT": (0, 2)})]
)
def test_average_of_the_weights_after_each_step(tmp_path, decay, options):
    """Skipped steps do not count; training itself is that without the average."""
    options = dict(options)
    nan_at = options.pop("NAN_AT", ())
    Recording.evaluated, Metric.values = [], [1.0, 2.0]
    cfg = ema_cfg(tmp_path / "ema", decay, test=True, **options)
    cfg.TEST.NAN_AT, cfg.TEST.EVAL_PERIOD = nan_at, 4
    steps = train(cfg, trainer_class=Recording).steps
    good = [state for i, state in enumerate(steps) if i not in nan_at]

    final = torch.load(tmp_path / "ema" / "model_final.pth")
    expected = average_by_hand(good, decay)
    for key, value in final["model"].items():
        torch.testing.assert_close(value.double(), expected[key], rtol=1e-5, atol=1e-7)
    assert not torch.equal(final["model"]["conv.weight"], steps[-1]["conv.weight"])
    assert final["trainer"]["n_averaged"] == len(good)
    assert_equal(Recording.evaluated[-1], final["model"])
    assert_equal(torch.load(tmp_path / "ema" / "model_best.pth")["model"], final["model"])
    expected = average_by_hand([state for i, state in enumerate(steps[:4]) if i not in nan_at], decay)
    torch.testing.assert_close(Recording.evaluated[0]["norm.running_var"].double(), expected["norm.running_var"])

    plain = toy_cfg(tmp_path / "plain", **options)
    plain.TEST.NAN_AT = nan_at
    train(plain)
    assert_equal(torch.load(tmp_path / "plain" / "model_final.pth")["model"], final["trainer"]["trained_model"])


def test_resumed_equals_uninterrupted(tmp_path):
    """The average, the trained weights and the number of steps."""
    train(ema_cfg(tmp_path / "whole"))
    train(ema_cfg(tmp_path / "halves"), stop_at=5)
    assert train(ema_cfg(tmp_path / "halves"), resume=True, seed=99).start_iter == 4
    a, b = (torch.load(tmp_path / run / "model_final.pth") for run in ("whole", "halves"))
    assert a.pop("cfg") != b.pop("cfg")  # the folder
    assert_equal(a, b)


@pytest.mark.parametrize("first", [True, False])
def test_resuming_with_the_average_switched(tmp_path, first):
    """Training goes on from the trained weights, as without any average; a new average starts with them."""
    train(toy_cfg(tmp_path / "plain"))
    run = tmp_path / "run"
    train((ema_cfg if first else toy_cfg)(run), stop_at=5)
    train((toy_cfg if first else ema_cfg)(run), resume=True, seed=99)
    plain, final = (torch.load(tmp_path / name / "model_final.pth") for name in ("plain", "run"))
    assert_equal(plain["model"], final["model"] if first else final["trainer"]["trained_model"])
    assert final["trainer"].get("n_averaged") == (None if first else 2)


def test_start_from_weights(tmp_path):
    train(ema_cfg(tmp_path / "start"))
    cfg = ema_cfg(tmp_path / "run", BASE_LR=1e-30)
    cfg.MODEL.WEIGHTS = str(tmp_path / "start" / "model_final.pth")
    start = torch.load(cfg.MODEL.WEIGHTS)["model"]
    train(cfg, seed=5)
    final = torch.load(tmp_path / "run" / "model_final.pth")
    for weights in (final["model"], final["trainer"]["trained_model"]):
        torch.testing.assert_close(weights["conv.weight"], start["conv.weight"])


def test_steps_that_the_gradient_scaler_skips(tmp_path):
    trainer = ToyTrainer(ema_cfg(tmp_path))
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, backoff_factor=2.0**-126)
    trainer.train()
    assert trainer.averaged.n_averaged == 5  # the first gradients overflow


def test_constant_buffers_are_copied():
    """An average would make nan of infinity."""
    model = torch.nn.BatchNorm2d(2)
    model.register_buffer("limit", torch.tensor(float("inf")))
    model.register_buffer("seen", torch.tensor(False))
    averaged = AveragedModel(model, 0.9)
    for _ in range(3):
        model.seen.fill_(True)
        averaged.update_parameters(model)
    assert averaged.module.limit == float("inf")
    assert averaged.module.seen


def test_precise_statistics_are_those_of_the_average(tmp_path):
    """Computed with momentum None: the mean over the batches of the convolution's output, here by hand."""
    cfg = ema_cfg(tmp_path, max_iter=2)
    cfg.TEST.PRECISE_BN.ENABLED, cfg.TEST.PRECISE_BN.NUM_ITER = True, 3
    trainer = train(cfg)
    loader = trainer.build_train_loader(cfg, seed=trainer.seed)
    average, trained = trainer.averaged.module, trainer.model
    images = [torch.stack([x["image"] for x in next(loader)]) for _ in range(3)]
    for model, equal in ((average, True), (trained, False)):
        means = torch.stack([model.conv(x).mean((0, 2, 3)) for x in images]).mean(0)
        assert torch.allclose(average.norm.running_mean, means, atol=1e-6) == equal


def test_off_by_default():
    assert get_cfg().SOLVER.EMA.ENABLED is False
