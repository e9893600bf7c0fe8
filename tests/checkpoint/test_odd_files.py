"""Odd, old and unexpected weight files are refused in one sentence, before they do any harm."""

import importlib
import io
import json
import logging
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from torch import nn

from instseg_d2.checkpoint import InstSegCheckpointer, formats, read_checkpoint_info, read_extra, read_weights
from instseg_d2.config import get_cfg
from instseg_d2.engine import Predictor
from instseg_d2.errors import CheckpointError
from instseg_d2.modeling.istr.autoencoder import AE
from tests.checkpoint.converting import convert
from tests.checkpoint.test_checkpointer import Evil


def assert_refused(path, match):
    with pytest.raises(CheckpointError, match=match) as error:
        InstSegCheckpointer(nn.Linear(2, 2)).load(str(path))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


# --- old files of PyTorch ---


def tar_file(path, trace):
    """PyTorch's first format; reading its part "storages" runs the code in it."""
    content = pickle.dumps(Evil(trace))
    with tarfile.open(path, "w") as tar:
        for name in ("storages", "tensors", "pickle"):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def test_tar_files_are_refused(tmp_path, monkeypatch, capsys):
    """In every version of PyTorch: those before 2.6 would read them."""
    path, trace = tmp_path / "w.pth", tmp_path / "trace"
    tar_file(path, trace)
    read = torch.load
    monkeypatch.setattr(torch, "load", lambda path, **kwargs: read(path, **{**kwargs, "weights_only": False}))
    assert_refused(path, r"w\.pth is not loaded, because it .*could run code: it is in .* a tar file")
    assert convert([str(path), str(tmp_path / "clean.pth")]) == 2
    assert f"--trust {path}" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match=r"PATH_COMPONENTS: .*w\.pth is not loaded.*a tar file"):
        AE(dim=16).load_file(str(path))
    assert not trace.exists()
    convert(["--trust", str(path), str(tmp_path / "clean.pth")])
    assert trace.exists()


@pytest.mark.parametrize(("version", "count"), [("2.9.1", 1), ("2.10.0", 0), ("2.11.0+cpu", 0)])
def test_old_versions_of_pytorch_are_warned_about_once(tmp_path, monkeypatch, caplog, version, count):
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pth")
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    formats._warn_of_old_torch.cache_clear()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            read_weights(str(tmp_path / "w.pth"))
            read_extra(str(tmp_path / "w.pth"))
    formats._warn_of_old_torch.cache_clear()
    assert sum("CVE-2026-24747" in r.getMessage() and version in r.getMessage() for r in caplog.records) == count


# --- names and values ---


@pytest.mark.parametrize("suffix", ["pkl", "pth"])
@pytest.mark.parametrize("wrap", [lambda x: {"model": x, "__author__": "x"}, lambda x: x])
def test_names_are_text(tmp_path, suffix, wrap):
    path = tmp_path / f"w.{suffix}"
    data = {1: np.zeros((2, 2), np.float32)} if suffix == "pkl" else {1: torch.zeros(2, 2)}
    if suffix == "pkl":
        path.write_bytes(pickle.dumps(wrap(data)))
    else:
        torch.save(wrap(data), path)
    assert_refused(path, "has no state dict: the name 1 is not text")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"weight": 3}, "contains no weights, only weight"),
        ({"weight": None, "bias": np.zeros(2)}, "has no state dict: weight is not a tensor"),
        ({}, r"w\.pkl contains no weights\."),
        ([1], "contains no weights, only"),
    ],
)
def test_values_are_tensors(tmp_path, model, message):
    path = tmp_path / "w.pkl"
    for data in ({"model": model, "__author__": "x"}, {"blobs": model}):
        path.write_bytes(pickle.dumps(data))
        assert_refused(path, message)


@pytest.mark.parametrize("dtype", ["O", "U3", "S3", "M8[D]", "f4,f4", "g"])
def test_arrays_are_of_numbers(tmp_path, dtype):
    """Even in a trusted file."""
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"model": {"weight": np.zeros(2, dtype)}, "__author__": "x"}))
    assert_refused(path, "could run code: it refers to")
    with pytest.raises(CheckpointError, match=r"w\.pkl has no state dict: weight is an array of .*, not of numbers"):
        read_weights(str(path), trust=True)


def test_a_number_of_numpy_is_an_array(tmp_path):
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"blobs": {"lr": np.float32(0.5)}}))
    found = read_weights(str(path))["model"]["lr"]
    assert (found.shape, found.dtype, found.tolist()) == ((), np.float32, 0.5)


def test_information_that_is_not_json(tmp_path):
    header = json.dumps({"__metadata__": {"class_names": "[oops"}}).encode()
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    assert_refused(tmp_path / "w.safetensors", "is damaged")


# --- digests ---


def test_nothing_is_read_before_its_digest_is_right(tmp_path, monkeypatch):
    """The file is invalid, so reading it before the check would give another error."""
    path = tmp_path / "w.pth"
    path.write_bytes(b"PK\x05\x06" + bytes(18))  # a zip file with nothing in it
    with pytest.raises(CheckpointError, match="it contains nothing"):
        read_extra(str(path))
    wrong = f"{path}?sha256={'0' * 64}"
    cfg = get_cfg()
    cfg.DATASETS.TEST = ("any",)
    cfg.MODEL.WEIGHTS = wrong
    setup = importlib.import_module("instseg_d2.engine.setup")  # its name in the package is the function's
    monkeypatch.setattr(setup, "class_names", lambda name: ["a"])
    monkeypatch.setattr(setup, "_check_test_sets", lambda cfg: None)
    readers = [
        read_extra,
        read_checkpoint_info,
        Predictor.from_checkpoint,
        InstSegCheckpointer(nn.Linear(2, 2)).load,
        lambda _: setup._fit_to_checkpoint(cfg),
    ]
    for reader in readers:
        with pytest.raises(CheckpointError, match=r"w\.pth is not loaded: its SHA-256 is"):
            reader(wrong)
