"""SOLVER.PATIENCE: when training ends, what is written, and how it is resumed."""

import json
import math

import pytest
import torch

from instseg_d2.checkpoint import read_extra
from instseg_d2.engine import argument_parser, setup
from instseg_d2.errors import ConfigError
from tests.engine.toy_trainer import DATA, Metric, registered_toys, toy_cfg, train  # noqa: F401 (a fixture)


def patient_cfg(folder, patience, period=2, **kwargs):
    cfg = toy_cfg(folder, max_iter=20, test=True, PATIENCE=patience, **kwargs)
    cfg.TEST.EVAL_PERIOD = period
    return cfg


@pytest.mark.parametrize(
    ("patience", "values", "done"),
    [
        (1, [1.0, 2.0, 2.0], 6),  # an equal value is not better
        (2, [3.0, 1.0, 4.0, 2.0, 3.9], 10),
        (2, [float("nan")] * 2, 4),
        (3, [5.0, 1.0, 2.0, 6.0, 1.0, 1.0, 1.0], 14),
        (10, [float(i) for i in range(10)], 20),
        (9, [9.0] * 10, 20),  # it ends with the last evaluation anyway
    ],
)
def test_end_of_training(tmp_path, patience, values, done):
    """Values are those of the evaluations: none is left, none is missing."""
    Metric.values = list(values)
    trainer = train(patient_cfg(tmp_path, patience, CHECKPOINT_PERIOD=0))
    assert Metric.values == []
    assert trainer.iter == trainer.max_iter == done
    final = read_extra(str(tmp_path / "model_final.pth"))
    assert final["iteration"] == done - 1
    assert len(final["rng"]) == 1
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"
    results = json.loads((tmp_path / "inference" / "results.json").read_text())
    assert results == {"segm": {"AP": None if math.isnan(values[-1]) else values[-1]}}
    last = json.loads((tmp_path / "metrics.json").read_text().splitlines()[-1])
    assert last["segm/AP"] == pytest.approx(values[-1], nan_ok=True)


def test_weights_are_those_of_a_run_that_is_not_ended(tmp_path):
    Metric.values = [2.0, 1.0]
    train(patient_cfg(tmp_path / "ended", 1))
    Metric.values = [1.0] * 10
    train(patient_cfg(tmp_path / "whole", 0))
    ended, whole = (
        torch.load(tmp_path / name)["model"] for name in ("ended/model_final.pth", "whole/model_0000003.pth")
    )
    assert all(torch.equal(ended[key], value) for key, value in whole.items())


def test_an_interrupted_run_counts_on(tmp_path):
    Metric.values = [5.0, 1.0, 2.0]
    train(patient_cfg(tmp_path, 4), stop_at=7)
    Metric.values = [3.0, 4.0]
    resumed = train(patient_cfg(tmp_path, 4), resume=True)
    assert (resumed.start_iter, resumed.iter, Metric.values) == (6, 10, [])


def test_a_run_that_has_ended(tmp_path, caplog):
    """Resumed, it only evaluates; with more patience, it goes on as if it had never ended."""
    caplog.set_level("INFO")
    Metric.values = [3.0, 1.0, 2.0]
    train(patient_cfg(tmp_path / "run", 2))
    before = (tmp_path / "run" / "model_final.pth").read_bytes()
    Metric.values = [2.0]
    again = train(patient_cfg(tmp_path / "run", 2), resume=True, seed=9)
    assert (again.start_iter, again.iter, Metric.values) == (6, 6, [])
    assert (tmp_path / "run" / "model_final.pth").read_bytes() == before
    assert "Training ends after 6 iterations: the last 2 evaluations were not better." in caplog.text

    Metric.values = [1.0] * 7
    assert train(patient_cfg(tmp_path / "run", 0), resume=True, seed=9).iter == 20
    Metric.values = [1.0] * 10
    train(patient_cfg(tmp_path / "whole", 0))
    a, b = (torch.load(tmp_path / run / "model_final.pth") for run in ("run", "whole"))
    assert all(torch.equal(a["model"][key], value) for key, value in b["model"].items())


def test_without_the_metric_training_goes_on(tmp_path):
    cfg = patient_cfg(tmp_path, 2)
    cfg.TEST.BEST_METRIC = "sem_seg/mIoU"
    Metric.values = [1.0] * 10
    assert train(cfg, stop_at=9).iter == 9
    assert train(cfg, resume=True).iter == 20


def test_nothing_to_evaluate_on(tmp_path):
    cfg = patient_cfg(tmp_path, 2)
    cfg.DATASETS.TEST = ()
    with pytest.raises(ConfigError, match=r"^SOLVER\.PATIENCE needs a DATASETS\.TEST"):
        setup(argument_parser().parse_args([]), cfg)
