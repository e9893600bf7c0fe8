"""Weights are found under all usual keys and prefixes of training codes."""

import logging
import os
import re

import pytest
import torch
from torch import nn

from instseg_d2.checkpoint import InstSegCheckpointer, read_weights
from instseg_d2.errors import CheckpointError
from tests.checkpoint.converting import convert
from tests.checkpoint.test_checkpointer import assert_same, load, toy, weights

OPTIMISER = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3, 4)}}, "param_groups": [{"lr": 0.1}]}
LIGHTNING = {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.0", "optimizer_states": [OPTIMISER]}


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


# name -> content of a file with the weights `s`
LAYOUTS = {
    "bare": lambda s: s,
    "model": lambda s: {"model": s, "optimizer": OPTIMISER, "iteration": 5},
    "state_dict": lambda s: {"state_dict": s, "best_acc1": 70.0},
    "Lightning": lambda s: {
        "state_dict": {**{f"model.{k}": v for k, v in s.items()}, "loss.w": s["head.bias"]},
        **LIGHTNING,
    },
    "Lightning, another attribute": lambda s: {"state_dict": under("detector.", s), **LIGHTNING},
    "model_state_dict": lambda s: {"epoch": 3, "model_state_dict": s, "optimizer_state_dict": OPTIMISER, "loss": 0.5},
    "net": lambda s: {"net": s, "acc": 91.3, "epoch": 200},
    "DeepSpeed": lambda s: {"module": s, "optimizer": None, "global_steps": 7},
    "model.module": lambda s: {"model": {"module": s}},
    "EMA alone": lambda s: {"model_ema": s},
    "EMA of timm": lambda s: {"arch": "resnet50", "state_dict_ema": s},
    "EMA with its count": lambda s: {"ema": {"module": s, "updates": 3}, "optimizer": OPTIMISER, "epoch": 1},
    "EMA beside": lambda s: {"model": s, "model_ema": {k: v + 1 for k, v in s.items()}},
    "EMA first": lambda s: {"ema": {k: v + 1 for k, v in s.items()}, "state_dict": s},
    "a name of its own": lambda s: {"epoch": torch.tensor(4), "my_detector": s, "optimizer": OPTIMISER},
    "a text under model": lambda s: {"model": "resnet50", "state_dict": s},
}
PREFIXES = (
    "module.", "model.", "_orig_mod.", "module.model.", "_orig_mod.module.", "module._orig_mod.", "model._orig_mod.",
    "_fsdp_wrapped_module.", "ema_model.", "student.",
)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_weights_are_found(tmp_path, layout):
    source, target = toy(), toy()
    torch.save(layout(weights(source)), tmp_path / "w.pth")
    load(target, tmp_path / "w.pth", for_test=True)
    assert_same(target, weights(source))


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes(tmp_path, prefix):
    source, target = toy(), toy()
    torch.save({"model": under(prefix, weights(source))}, tmp_path / "w.pth")
    load(target, tmp_path / "w.pth", for_test=True)
    assert_same(target, weights(source))


def test_prefixes_on_some_names(tmp_path):
    """Only parts of the model were wrapped by torch.compile or DataParallel."""
    source, target = toy(), toy()
    state = weights(source)
    renamed = {
        "module.backbone._orig_mod.0.weight": state.pop("backbone.0.weight"),
        "backbone._checkpoint_wrapped_module.0.bias": state.pop("backbone.0.bias"),
        "model.neck.weight": state.pop("neck.weight"),
    }
    torch.save({**renamed, **state}, tmp_path / "w.pth")
    load(target, tmp_path / "w.pth", for_test=True)
    assert_same(target, weights(source))


def test_names_that_the_model_has_stay(tmp_path):
    source, target = (nn.ModuleDict({"model": toy(), "module": nn.Linear(2, 3)}) for _ in range(2))
    torch.save(source.state_dict(), tmp_path / "w.pth")
    load(target, tmp_path / "w.pth", for_test=True)
    assert_same(target, weights(source))


def test_a_compiled_model_is_its_own(tmp_path):
    """It is saved and loaded under its own names."""
    source, target = toy(), toy()
    InstSegCheckpointer(torch.compile(source), str(tmp_path)).save("w")
    assert read_weights(tmp_path / "w.pth")["model"].keys() == weights(source).keys()
    load(torch.compile(target), tmp_path / "w.pth", for_test=True)
    assert_same(target, weights(source))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            {"a.weight": torch.ones(1), "module.a.weight": torch.zeros(1)},
            "has a.weight twice, as a.weight and",
        ),
        (
            {"G": {"a": torch.ones(1)}, "D": {"a": torch.ones(1)}},
            r"contains several sets of weights \(G, D\): save the",
        ),
        (
            OPTIMISER,
            r"contains the state of an optimiser, but no weights \(state, param_groups\): use the file of the m",
        ),
        (
            {"optimizer": OPTIMISER, "epoch": 3},
            r"contains the state of an optimiser, but no weights \(optimizer, epoch\)",
        ),
        ({"epoch": 3, "args": "x"}, "contains no weights, only epoch, args"),
        ({}, "contains no weights"),
        ({"model": {}}, "contains no weights"),
    ],
)
def test_files_without_weights_say_what_they_contain(tmp_path, capsys, data, message):
    torch.save(data, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=rf"w\.pth {message}"):
        load(toy(), tmp_path / "w.pth")
    assert convert([str(tmp_path / "w.pth"), str(tmp_path / "x.pth")]) == 2
    assert re.search(rf"w\.pth {message}", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("layout", "note"),
    [
        ("EMA alone", "w.pth: its model_ema is loaded."),
        ("EMA beside", "w.pth: its model is loaded, not its model_ema."),
        ("EMA with its count", "w.pth: its ema is loaded and its module is loaded."),
        ("model", None),
        ("Lightning", None),
    ],
)
def test_which_weights_are_used_is_logged(tmp_path, caplog, layout, note):
    caplog.set_level(logging.INFO)
    torch.save(LAYOUTS[layout](weights(toy())), tmp_path / "w.pth")
    load(toy(), tmp_path / "w.pth")
    told = [record.getMessage() for record in caplog.records if "is loaded" in record.getMessage()]
    assert [text.rpartition("/")[2] for text in told] == ([note] if note else [])


def test_the_converter_finds_them_too(tmp_path):
    source = toy()
    state = {"model_ema": {"module": under("module.", weights(source))}}
    torch.save(state, tmp_path / "a.pth")
    assert convert([str(tmp_path / "a.pth"), str(tmp_path / "b.pth")]) == 0
    assert torch.load(tmp_path / "b.pth")["model"].keys() == weights(source).keys()


@pytest.mark.parametrize("kind", ["same", "dots", "symlink", "hard link"])
def test_a_file_is_not_converted_into_itself(tmp_path, capsys, kind):
    """That would lose its optimiser."""
    path, target = tmp_path / "a.pth", tmp_path / "b.pth"
    model = toy()
    InstSegCheckpointer(model, str(tmp_path), optimizer=torch.optim.Adam(model.parameters())).save("a")
    before = path.read_bytes()
    if kind == "symlink":
        target.symlink_to(path)
    elif kind == "hard link":
        os.link(path, target)
    else:
        target = path if kind == "same" else tmp_path / "." / ".." / tmp_path.name / "a.pth"
    assert convert([str(path), str(target)]) == 2
    assert f"{target} is also the source: choose another target" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_module_in_a_trusted_file(tmp_path):
    source = toy()
    for name, data in (("whole", source), ("wrapped", {"ema": source, "epoch": 3})):
        torch.save(data, tmp_path / f"{name}.pth")
        with pytest.raises(CheckpointError, match="could run code"):
            read_weights(tmp_path / f"{name}.pth")
        assert convert(["--trust", str(tmp_path / f"{name}.pth"), str(tmp_path / "clean.pth")]) == 0
        assert torch.load(tmp_path / "clean.pth")["model"].keys() == weights(source).keys()


# --- resuming ---


def run(tmp_path, *names):
    """Checkpoints of a training, and the checkpointer that resumes it."""
    model = toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpointer = InstSegCheckpointer(model, str(tmp_path), optimizer=optimizer)
    for name in names:
        checkpointer.save(name, iteration=int(name[-1]))
    return checkpointer


def test_resuming_from_a_truncated_file_names_an_earlier_one(tmp_path):
    checkpointer = run(tmp_path, "model_0000001", "model_0000003", "model_0000005")
    last = tmp_path / "model_0000005.pth"
    last.write_bytes(last.read_bytes()[:1000])
    remedy = rf"To resume from model_0000003\.pth, write its name to {tmp_path}/last_checkpoint\."
    for read in (checkpointer.read_last, lambda: checkpointer.resume_or_load("")):
        with pytest.raises(CheckpointError, match=rf"model_0000005\.pth is damaged: .*again\. {remedy}"):
            read()
    last.unlink()
    with pytest.raises(CheckpointError, match=rf"no such weight file\. {remedy}"):
        checkpointer.resume_or_load("")
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    assert checkpointer.read_last()["iteration"] == checkpointer.resume_or_load("")["iteration"] == 3


def test_resuming_without_an_earlier_file(tmp_path):
    checkpointer = run(tmp_path, "model_0000001")
    (tmp_path / "model_0000001.pth").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match=r"is empty: .*has no earlier checkpoint: start a new run without --resume\."
    ):
        checkpointer.resume_or_load("")


def test_resuming_needs_the_optimiser(tmp_path):
    checkpointer = run(tmp_path)
    checkpointer.save("model_best", model_only=True)
    with pytest.raises(CheckpointError, match=r"model_best\.pth has no state of the optimizer, so training cannot"):
        checkpointer.resume_or_load("")
    assert checkpointer.resume_or_load(str(tmp_path / "model_best.pth"), resume=False) == {}
