"""Formats, safety, reports and atomic writing of checkpoints."""

import errno
import hashlib
import logging
import os
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from instseg_d2.checkpoint import InstSegCheckpointer, read_checkpoint_info, read_extra, save_safetensors
from instseg_d2.errors import CheckpointError
from tests.checkpoint.converting import convert


def toy(classes=3, width=4):
    """Ten tensors; one is a batch counter, which reports ignore."""
    return nn.ModuleDict(
        {
            "backbone": nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width)),
            "neck": nn.Conv2d(width, width, 1, bias=False),
            "head": nn.Linear(width, classes),
        }
    )


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(model, state):
    for name, tensor in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            torch.testing.assert_close(tensor, state[name], rtol=0, atol=0)


def load(model, path, **kwargs):
    return InstSegCheckpointer(model, **kwargs).load(str(path))


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


# --- formats ---


def test_roundtrip_with_metadata(tmp_path):
    source = toy()
    metadata = {"cfg": "MODEL: {}\n", "class_names": ["cat", "dog"]}
    InstSegCheckpointer(source, str(tmp_path), metadata=metadata).save("model_final", iteration=7)
    target = toy()
    extra = load(target, tmp_path / "model_final.pth", for_test=True)
    assert_same(target, weights(source))
    assert extra["iteration"] == 7
    assert read_checkpoint_info(str(tmp_path / "model_final.pth")) == ("MODEL: {}\n", ["cat", "dog"])
    assert read_extra(str(tmp_path / "model_final.pth")) == {**metadata, "iteration": 7}
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s}])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_state_dict_is_found(tmp_path, wrap, prefix):
    source, target = toy(), toy()
    torch.save(wrap({prefix + k: v for k, v in weights(source).items()}), tmp_path / "w.pth")
    load(target, tmp_path / "w.pth", for_test=True)
    assert_same(target, weights(source))
    assert read_checkpoint_info(str(tmp_path / "w.pth")) == (None, None)


def test_old_torch_file(tmp_path):
    source, target = toy(), toy()
    torch.save(weights(source), tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    load(target, tmp_path / "w.pth", for_test=True)
    assert_same(target, weights(source))
    assert read_checkpoint_info(str(tmp_path / "w.pth")) == (None, None)


def test_zoo_pickle(tmp_path):
    source, target = toy(), toy()
    arrays = {name: tensor.numpy() for name, tensor in weights(source).items()}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "someone"}, protocol=2))
    load(target, tmp_path / "w.pkl", for_test=True)
    assert_same(target, weights(source))


def test_caffe2_names_match_by_their_ending(tmp_path):
    """R-50.pkl of Detectron: res2_0_branch2a_w is the first convolution of the first block of res2."""
    model = nn.ModuleDict({"backbone": nn.ModuleDict({"stem": nn.Module(), "res2": nn.ModuleList([nn.Module()])})})
    model["backbone"]["stem"].conv1 = nn.Conv2d(3, 2, 1, bias=False)
    model["backbone"]["res2"][0].conv1 = nn.Conv2d(2, 2, 1, bias=False)
    blobs = {
        "conv1_w": np.full((2, 3, 1, 1), 3, np.float32),
        "res2_0_branch2a_w": np.full((2, 2, 1, 1), 5, np.float32),
        "res2_0_branch2a_w_momentum": np.zeros((2, 2, 1, 1), np.float32),
        "fc1000_w": np.zeros((5, 2), np.float32),
    }
    (tmp_path / "R-50.pkl").write_bytes(pickle.dumps({"blobs": blobs}, protocol=2))
    load(model, tmp_path / "R-50.pkl")
    assert model["backbone"]["stem"].conv1.weight.unique().tolist() == [3]
    assert model["backbone"]["res2"][0].conv1.weight.unique().tolist() == [5]


def test_heuristics_can_be_asked_for(tmp_path):
    source, target = nn.Linear(2, 2), nn.ModuleDict({"inner": nn.Linear(2, 2)})
    torch.save(weights(source), tmp_path / "w.pth")
    load(target, f"{tmp_path}/w.pth?matching_heuristics=True", for_test=True)
    assert torch.equal(target["inner"].weight, source.weight)
    with pytest.raises(CheckpointError, match="matching_heuristics"):
        load(target, f"{tmp_path}/w.pth?other=1")


def test_safetensors(tmp_path):
    source, target = toy().to(memory_format=torch.channels_last), toy()
    source["head"].weight = nn.Parameter(torch.zeros(5, 4).t()[:, :3].t())  # a view into other memory
    path = str(tmp_path / "w.safetensors")
    save_safetensors(path, source.state_dict(), cfg="A: 1", class_names=["ü"])
    load(target, path, for_test=True)
    assert_same(target, weights(source))
    assert read_checkpoint_info(path) == ("A: 1", ["ü"])


# --- safety ---


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_code_is_refused(tmp_path, suffix):
    path, trace = tmp_path / f"w.{suffix}", tmp_path / "trace"
    data = {"__author__": Evil(trace), "model": {"a": torch.zeros(1)}}
    if suffix == "pkl":
        path.write_bytes(pickle.dumps(data))
    else:
        torch.save(data, path)
    with pytest.raises(CheckpointError, match=rf"w\.{suffix} is not loaded.*could run code.*mkdir"):
        load(toy(), path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
def test_trust_is_the_only_way_around(tmp_path, capsys, suffix):
    """A trusted file runs its code once; after conversion its weights are only data."""
    path, trace, clean = tmp_path / f"w.{suffix}", tmp_path / "trace", tmp_path / "clean.pth"
    data = {"__author__": Evil(trace), "model": weights(toy())}
    if suffix == "pkl":
        path.write_bytes(pickle.dumps({**data, "model": {k: v.numpy() for k, v in data["model"].items()}}))
    else:
        torch.save(data, path)
    assert convert([str(path), str(clean)]) == 2
    assert f"python -m instseg_d2.checkpoint --trust {path}" in capsys.readouterr().err
    assert not trace.exists()
    assert not clean.exists()
    assert convert(["--trust", str(path), str(clean)]) == 0
    assert trace.exists()
    model = toy()
    load(model, clean, for_test=True)
    assert_same(model, data["model"])
    path.write_bytes(b"cno_such_module\nThing\n.")
    assert convert(["--trust", str(path), str(clean)]) == 2


def test_sha256(tmp_path, capsys):
    source, target = toy(), toy()
    path = tmp_path / "w.pth"
    torch.save(weights(source), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    load(target, f"{path}?sha256={digest.upper()}", for_test=True)
    assert_same(target, weights(source))
    wrong = ("0" if digest[0] != "0" else "1") + digest[1:]
    with pytest.raises(CheckpointError, match=f"w.pth is not loaded: its SHA-256 is {digest}, expected {wrong}"):
        load(target, f"{path}?matching_heuristics=True&sha256={wrong}")
    with pytest.raises(CheckpointError, match="64 HEXADECIMAL DIGITS"):
        load(target, f"{path}?sha256=12")
    assert convert([f"{path}?sha256={wrong}", str(tmp_path / "x.pth")]) == 2
    assert "SHA-256" in capsys.readouterr().err
    assert convert([f"{path}?sha256={digest}", str(tmp_path / "x.pth")]) == 0


def test_eval_is_refused_in_pickles(tmp_path):
    (tmp_path / "w.pkl").write_bytes(b"cbuiltins\neval\n(S'1'\ntR.")
    with pytest.raises(CheckpointError, match=r"builtins\.eval"):
        load(toy(), tmp_path / "w.pkl")


def test_a_missing_file_names_the_remedy(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.pth: no such weight file\..*from scratch.*FREEZE_AT 0"):
        load(toy(), tmp_path / "none.pth")


def test_a_failed_download_names_the_remedy(monkeypatch):
    checkpointer = InstSegCheckpointer(toy())

    def no_network(path):
        raise OSError("Name or service not known")

    monkeypatch.setattr(checkpointer.path_manager, "get_local_path", no_network)
    with pytest.raises(CheckpointError, match=r"R-50\.pkl cannot be downloaded \(Name or.*local file.*from scratch"):
        checkpointer.load("detectron2://ImageNetPretrained/MSRA/R-50.pkl")


# --- reports ---


def test_report_of_a_full_load(tmp_path, caplog):
    source = toy()
    torch.save(weights(source), tmp_path / "w.pth")
    with caplog.at_level(logging.INFO):
        load(toy(), tmp_path / "w.pth")
    assert [r.getMessage() for r in caplog.records if "weights loaded" in r.getMessage()] == [
        f"{tmp_path}/w.pth: 9 of 9 weights loaded."
    ]


def test_report_of_backbone_weights(tmp_path, caplog):
    source, target = toy(), toy()
    before = weights(target)
    torch.save({k: v for k, v in weights(source).items() if "backbone" in k}, tmp_path / "w.pth")
    load(target, tmp_path / "w.pth")
    assert "6 of 9 weights loaded. 3 are missing and keep their initial values: head (2), neck (1)." in caplog.text
    assert torch.equal(target["backbone"][0].weight, source["backbone"][0].weight)
    assert torch.equal(target["head"].weight, before["head.weight"])
    with pytest.raises(CheckpointError, match=r"w\.pth lacks 3 weights of the model: neck\.weight, head\.weight"):
        load(toy(), tmp_path / "w.pth", for_test=True)


def test_other_class_count(tmp_path, caplog):
    source, target = toy(classes=80), toy(classes=3)
    torch.save(weights(source), tmp_path / "w.pth")
    load(target, tmp_path / "w.pth")
    assert "7 of 9 weights loaded. 2 have another shape and are reinitialised: head (2)." in caplog.text
    assert torch.equal(target["neck"].weight, source["neck"].weight)
    with pytest.raises(CheckpointError, match=r"2 weights.*head\.weight: \(80, 4\) in the file, \(3, 4\) in the model"):
        load(toy(), tmp_path / "w.pth", for_test=True)


def test_unexpected_weights_are_reported_only(tmp_path, caplog):
    source = weights(toy())
    source["extra.fc.weight"] = torch.zeros(1)
    torch.save(source, tmp_path / "w.pth")
    with caplog.at_level(logging.INFO):
        load(toy(), tmp_path / "w.pth", for_test=True)
    assert "9 of 9 weights loaded. 1 are not used by this model: extra.fc (1)." in caplog.text


@pytest.mark.parametrize("for_test", [False, True])
def test_other_architecture(tmp_path, for_test):
    torch.save({f"features.{i}.weight": torch.zeros(2) for i in range(30)}, tmp_path / "vgg.pth")
    with pytest.raises(CheckpointError, match=r"vgg\.pth is a checkpoint of another architecture: .*only 0 of its 30"):
        load(toy(), tmp_path / "vgg.pth", for_test=for_test)


def test_weights_of_a_diverged_run_are_reported(tmp_path, caplog):
    source = toy()
    source["head"].bias.data[1] = float("nan")
    torch.save(weights(source), tmp_path / "w.pth")
    load(toy(), tmp_path / "w.pth", for_test=True)
    (report,) = [record for record in caplog.records if "weights loaded" in record.getMessage()]
    assert "1 have values that are not finite, as after divergence: head (1)." in report.getMessage()
    assert report.levelno == logging.WARNING


def test_a_method_that_shares_parts_is_named(tmp_path):
    """The config in the file says whose weights they are; where all the model's are there, nothing is wrong."""
    metadata = {"cfg": "MODEL:\n  DEVICE: cpu\n  META_ARCHITECTURE: EmbedMask\nVERSION: 2\n"}
    InstSegCheckpointer(toy(), str(tmp_path), metadata=metadata).save("w")
    path = tmp_path / "w.pth"
    load(toy(), path, for_test=True)
    larger = toy()
    larger["mask_head"] = nn.Linear(2, 2)
    load(larger, path)  # fine-tuning
    message = r"w\.pth is a checkpoint of EmbedMask, but the config builds ModuleDict: use the config it was tr"
    with pytest.raises(CheckpointError, match=message):
        load(larger, path, for_test=True)


def test_weights_under_a_second_name_are_not_missing(tmp_path):
    model = toy()
    model["twin"] = model["neck"]
    torch.save({k: v for k, v in weights(model).items() if "twin" not in k}, tmp_path / "w.pth")
    load(model, tmp_path / "w.pth", for_test=True)


def test_empty_path_loads_nothing(caplog):
    model = toy()
    before = weights(model)
    with caplog.at_level(logging.INFO):
        assert load(model, "") == {}
        assert load(model, "", for_test=True) == {}
    assert_same(model, before)
    assert [r.levelno for r in caplog.records if "random initial" in r.getMessage()] == [logging.INFO, logging.WARNING]


def test_a_checkpointer_survives_a_failed_load(tmp_path):
    source, target = toy(), toy()
    torch.save(weights(source), tmp_path / "w.pth")
    checkpointer = InstSegCheckpointer(target)
    with pytest.raises(CheckpointError):
        checkpointer.load(str(tmp_path / "none.pth"))
    checkpointer.load(str(tmp_path / "w.pth"))
    assert_same(target, weights(source))


# --- saving ---


class FullDisk:
    """A file that accepts some bytes and then reports a full disk."""

    def __init__(self, file, room):
        self._file, self._room = file, room

    def write(self, data):
        self._room -= len(data)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._file.write(data)

    def __getattr__(self, name):
        return getattr(self._file, name)


@pytest.mark.parametrize("room", [0, 700, 1500])
def test_no_space_leaves_the_old_checkpoint(tmp_path, monkeypatch, room):
    source = toy()
    checkpointer = InstSegCheckpointer(source, str(tmp_path))
    checkpointer.save("model_final")
    saved = weights(source)
    source["head"].weight.data += 1
    save = torch.save
    monkeypatch.setattr(torch, "save", lambda data, file: save(data, FullDisk(file, room)))
    with pytest.raises(CheckpointError, match=r"no space left to write .*model_final\.pth"):
        checkpointer.save("model_final")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_final.pth"]
    target = toy()
    load(target, tmp_path / "model_final.pth", for_test=True)
    assert_same(target, saved)


def test_an_interrupted_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    checkpointer = InstSegCheckpointer(toy(), str(tmp_path))
    checkpointer.save("model_0000001")
    before = (tmp_path / "model_0000001.pth").read_bytes()

    def interrupted(data, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model_0000001")
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model_0000002")
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]
    assert (tmp_path / "model_0000001.pth").read_bytes() == before
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"


def test_model_only_and_untagged(tmp_path):
    model = toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    checkpointer = InstSegCheckpointer(model, str(tmp_path), optimizer=optimizer)
    checkpointer.save("model_0000001")
    checkpointer.save("model_best", model_only=True, tag=False)
    assert "optimizer" in read_extra(str(tmp_path / "model_0000001.pth"))
    assert read_extra(str(tmp_path / "model_best.pth")) == {}
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")


def test_resuming_needs_every_weight(tmp_path):
    InstSegCheckpointer(toy(classes=80), str(tmp_path)).save("model_final")
    checkpointer = InstSegCheckpointer(toy(classes=3), str(tmp_path))
    with pytest.raises(CheckpointError, match="do not have the model's shape"):
        checkpointer.resume_or_load("", resume=True)
    assert checkpointer.resume_or_load("", resume=False) == {}
