"""A run in the folder of an earlier one continues only the same run, and sets aside any other completely."""

import logging

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from instseg_d2.checkpoint import read_extra
from instseg_d2.engine.earlier_run import set_aside
from instseg_d2.errors import ConfigError, DatasetError
from tests.engine.toy_trainer import DATA, Metric, ToyTrainerNet, registered_toys, toy_cfg, train  # noqa: F401 (a fixture)


def with_classes(*names, **others):
    MetadataCatalog.pop(DATA)
    MetadataCatalog.get(DATA).set(thing_classes=list(names), **others)


def contents(folder):
    """{path below the folder: bytes} of all files but the log."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "log.txt"
    }


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ("square", "disc"),
            "in the order of category ids, class 1 is 'disc' in that run and 'square' in toy_trainer_im",
        ),
        (("disc", "ring"), "only that run has 'square'; only toy_trainer_images has 'ring'"),
        (("disc",), "only that run has 'square'"),
        (("disc", "square", "ring"), "only toy_trainer_images has 'ring'"),
    ],
)
def test_a_run_on_other_classes_is_not_continued(tmp_path, names, message):
    """And nothing in its folder is changed."""
    train(toy_cfg(tmp_path), stop_at=3)
    before = contents(tmp_path)
    with_classes(*names)
    with pytest.raises(
        DatasetError, match=rf"the run in {tmp_path} was trained on other classes: {message}.*config.ya"
    ):
        train(toy_cfg(tmp_path, max_iter=9), resume=True)
    assert contents(tmp_path) == before


def test_other_semantic_classes(tmp_path):
    with_classes("disc", "square", stuff_classes=["things", "sky"])
    train(toy_cfg(tmp_path), stop_at=3)
    with_classes("disc", "square", stuff_classes=["things", "sea"])
    with pytest.raises(DatasetError, match="only that run has 'sky'; only toy_trainer_images has 'sea'"):
        train(toy_cfg(tmp_path), resume=True)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("SOLVER", "OPTIMIZER", "ADAMW", "another SOLVER.OPTIMIZER than AdamW: resume with its config.yaml"),
        (
            "MODEL",
            "META_ARCHITECTURE",
            "OtherToyNet",
            "trained ToyTrainerNet, not OtherToyNet: resume with",
        ),
    ],
)
def test_another_method_or_optimiser_does_not_continue_it(tmp_path, section, key, value, message):
    if "OtherToyNet" not in META_ARCH_REGISTRY:
        META_ARCH_REGISTRY.register(type("OtherToyNet", (ToyTrainerNet,), {}))
    train(toy_cfg(tmp_path), stop_at=3)
    before = contents(tmp_path)
    cfg = toy_cfg(tmp_path)
    cfg[section][key] = value
    with pytest.raises(ConfigError, match=message):
        train(cfg, resume=True)
    assert contents(tmp_path) == before


def test_changed_values_are_logged(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    train(toy_cfg(tmp_path), stop_at=3)
    train(toy_cfg(tmp_path, BASE_LR=0.01, max_iter=7), resume=True)
    assert "Config values that have changed: SOLVER.BASE_LR 0.05 -> 0.01, SOLVER.MAX_ITER 6 -> 7." in caplog.text
    assert "MAX_ITER: 7" in (tmp_path / "config.yaml").read_text()


def test_a_fresh_run_sets_all_results_aside(tmp_path, caplog):
    """All that the next command could mistake for its own; a third run keeps those of both."""
    caplog.set_level(logging.INFO)
    cfg = toy_cfg(tmp_path, test=True)
    Metric.values = [5.0]
    train(cfg)
    (tmp_path / "bad_batch_1.pth").write_text("kept")
    (tmp_path / "R-50.pkl").write_text("the user's")
    first = contents(tmp_path)
    assert {
        "model_best.pth",
        "last_checkpoint",
        "config.yaml",
        "inference/results.json",
        "metrics.json",
    } <= first.keys()
    assert any(name.startswith("events.out") for name in first)
    first.pop("R-50.pkl")

    with_classes("other")
    train(toy_cfg(tmp_path, max_iter=2))  # without validation
    assert f"The results of the earlier run were moved to {tmp_path}/earlier." in caplog.text
    assert contents(tmp_path / "earlier") == first
    now = {path.name for path in tmp_path.iterdir() if not path.name.startswith("events.out")}
    files = {"model_0000001.pth", "model_final.pth", "last_checkpoint", "metrics.json", "config.yaml"}
    assert now == {*files, "R-50.pkl", "earlier"}
    assert read_extra(tmp_path / "model_final.pth")["class_names"] == ["other"]

    train(toy_cfg(tmp_path, max_iter=2))
    assert contents(tmp_path / "earlier") == first
    assert read_extra(tmp_path / "earlier_2" / "model_final.pth")["class_names"] == ["other"]


def test_a_fresh_run_that_stops_early_is_not_resumed_from_the_earlier_one(tmp_path):
    train(toy_cfg(tmp_path))
    train(toy_cfg(tmp_path), stop_at=1)
    resumed = train(toy_cfg(tmp_path), resume=True)
    assert resumed.start_iter == 0


def test_a_run_from_weights_in_its_own_folder(tmp_path):
    """They are read before they are moved."""
    train(toy_cfg(tmp_path))
    weights = torch.load(tmp_path / "model_final.pth")["model"]
    cfg = toy_cfg(tmp_path, BASE_LR=1e-9, max_iter=1)
    cfg.MODEL.WEIGHTS = str(tmp_path / "model_final.pth")
    trained = train(cfg).model.state_dict()
    torch.testing.assert_close(trained["head.bias"], weights["head.bias"])


def test_nothing_to_set_aside(tmp_path):
    (tmp_path / "config.yaml").write_text("the user's")
    assert set_aside(str(tmp_path)) == set_aside(str(tmp_path / "none")) == ""
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
