"""LOGGING.WRITERS with packages that only write down what they are called with."""

import json
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from detectron2.utils.events import EventStorage

from instseg_d2.config import get_cfg
from instseg_d2.engine.trackers import build_trackers, require_trackers
from instseg_d2.errors import ConfigError
from tests.engine.toy_trainer import registered_toys, toy_cfg, train  # noqa: F401 (a fixture)


@pytest.fixture
def calls(monkeypatch):
    """(function, arguments) of the calls of both packages."""
    calls = []

    def recorded(name, result=None):
        def call(*args, **kwargs):
            calls.append((name, *args, *([kwargs] if kwargs else [])))
            return result

        return call

    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    run = SimpleNamespace(id="w1", log=recorded("wandb.log"), finish=recorded("wandb.finish"))
    wandb.init, wandb.Image = recorded("wandb.init", run), lambda picture: ("picture", picture.shape)
    started = SimpleNamespace(info=SimpleNamespace(run_id="m1"))
    mlflow.start_run = recorded("mlflow.start_run", started)
    for name in ("set_experiment", "log_params", "log_metrics", "log_image", "end_run"):
        setattr(mlflow, name, recorded(f"mlflow.{name}"))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    return calls


def config(folder, *names):
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.LOGGING.WRITERS, cfg.LOGGING.PROJECT = str(folder), list(names), "cells"
    cfg.SOLVER.BASE_LR = 0.25
    return cfg


def test_what_is_sent(calls, tmp_path):
    """Each number once, at its iteration; pictures in rows of pixels; names that MLflow allows."""
    cfg = config(tmp_path / "mine", "wandb", "mlflow")
    (tmp_path / "mine").mkdir()
    with EventStorage(7) as storage:
        trackers = build_trackers(cfg, resumed=False)
        storage.put_scalar("loss", 2.0)
        for tracker in trackers:
            tracker.write()
        storage.iter = 9
        storage.put_scalar("segm/AP-ü (old)", 50.0, smoothing_hint=False)
        storage.put_image("val/1", np.zeros((3, 4, 5), np.uint8))
        for tracker in trackers:
            tracker.write()
            tracker.close()
    init = next(call[1] for call in calls if call[0] == "wandb.init")
    assert (init["project"], init["name"], init["id"]) == ("cells", "mine", None)
    assert init["config"]["SOLVER"]["BASE_LR"] == 0.25
    assert ("mlflow.set_experiment", "cells") in calls
    assert ("mlflow.start_run", {"run_id": None, "run_name": "mine"}) in calls
    (params,) = [call[1] for call in calls if call[0] == "mlflow.log_params"]
    assert params["SOLVER.BASE_LR"] == "0.25"
    assert "SOLVER.MAX_ITER" not in params
    assert [call for call in calls if call[0] == "wandb.log"] == [
        ("wandb.log", {"loss": 2.0}, {"step": 7}),
        ("wandb.log", {"segm/AP-ü (old)": 50.0, "val/1": ("picture", (4, 5, 3))}, {"step": 9}),
    ]
    assert [call[1:] for call in calls if call[0] == "mlflow.log_metrics"] == [
        ({"loss": 2.0}, {"step": 7}),
        ({"segm/AP-ü _old_": 50.0}, {"step": 9}),
    ]
    (image,) = [call for call in calls if call[0] == "mlflow.log_image"]
    assert image[1].shape == (4, 5, 3)
    assert image[2] == "val/1/9.png"
    assert ("wandb.finish", {"exit_code": 0}) in calls
    assert calls[-1] == ("mlflow.end_run", "FINISHED")


def test_a_training_and_its_continuation(calls, tmp_path):
    cfg = toy_cfg(tmp_path)
    cfg.LOGGING.WRITERS = ["wandb", "mlflow"]
    train(cfg, stop_at=5)
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "w1", "mlflow": "m1"}
    assert ("wandb.finish", {"exit_code": 1}) in calls
    assert calls[-1] == ("mlflow.end_run", "FAILED")
    calls.clear()
    train(cfg, resume=True)
    assert next(call[1]["id"] for call in calls if call[0] == "wandb.init") == "w1"
    assert ("mlflow.start_run", {"run_id": "m1", "run_name": None}) in calls
    sent = [call[1] for call in calls if call[0] == "mlflow.log_metrics"]
    assert any("total_loss" in metrics for metrics in sent)
    assert calls[-1] == ("mlflow.end_run", "FINISHED")


def test_a_service_that_fails(calls, tmp_path, monkeypatch, caplog):
    """At the start one sentence; later one warning, and training goes on."""

    def fail(*args, **kwargs):
        raise RuntimeError("no\nlogin")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    with pytest.raises(ConfigError, match=r"^LOGGING\.WRITERS: wandb does not start: no login$"):
        build_trackers(config(tmp_path, "wandb"), resumed=False)
    monkeypatch.setattr(sys.modules["mlflow"], "log_metrics", fail)
    with EventStorage(0) as storage:
        (tracker,) = build_trackers(config(tmp_path, "mlflow"), resumed=False)
        for _ in range(3):
            storage.put_scalar("loss", 1.0)
            tracker.write()
            storage.iter += 1
        tracker.close()
    assert caplog.messages == ["mlflow gets no more metrics of this training: no login"]


def test_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr("instseg_d2.engine.trackers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^LOGGING\.WRITERS names mlflow, which is not installed: pip install"):
        require_trackers(config(tmp_path, "mlflow"))
