"""The error for an unusable file says what it is, for every reader and any file name."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from instseg_d2.checkpoint import InstSegCheckpointer, read_extra, read_weights, save_safetensors
from instseg_d2.errors import CheckpointError
from tests.checkpoint.converting import convert

STATE = {f"layers.{i}.weight": torch.arange(300.0).reshape(20, 15) + i for i in range(4)}


def new_torch(path):
    torch.save({"model": STATE, "cfg": "A: 1"}, path)


def old_torch(path):
    torch.save({"model": STATE}, path, _use_new_zipfile_serialization=False)


def pickled(path):
    arrays = {name: value.numpy() for name, value in STATE.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}, protocol=2))


def safetensors(path):
    save_safetensors(str(path), STATE, cfg="A: 1")


WRITERS = {"zip": new_torch, "old": old_torch, "pickle": pickled, "safetensors": safetensors}


def messages(path, tmp_path, capsys):
    """The errors of all readers: of the config, the weights, the checkpointer and the converter."""
    readers = [read_extra, read_weights, InstSegCheckpointer(nn.Linear(2, 2)).load]
    for reader in readers:
        with pytest.raises(CheckpointError) as error:
            reader(path)
        yield str(error.value)
    assert convert([str(path), str(tmp_path / "converted.pth")]) == 2
    yield capsys.readouterr().err.strip()
    assert not (tmp_path / "converted.pth").exists()


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors", "bin"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_the_content_counts_not_the_name(tmp_path, write, suffix):
    path = tmp_path / f"w.{suffix}"
    write(path)
    found = read_weights(path)["model"]  # a pathlib.Path
    assert found.keys() == STATE.keys()
    assert all(torch.equal(torch.as_tensor(found[name]), value) for name, value in STATE.items())
    assert read_extra(path).get("cfg") == ("A: 1" if write in (new_torch, safetensors) else None)


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_truncated_file_is_damaged(tmp_path, capsys, write, suffix):
    """Truncated anywhere."""
    path = tmp_path / f"w.{suffix}"
    write(path)
    whole = path.read_bytes()
    for length in (20, 100, 180, 300, 700, 1000, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        path.write_bytes(whole[:length])
        for message in messages(path, tmp_path, capsys):
            assert f"{path} is damaged: " in message, (length, message)
            assert "\n" not in message


def test_a_changed_value_is_noticed(tmp_path):
    """PyTorch itself does not verify checksums."""
    path = tmp_path / "w.pth"
    new_torch(path)
    with zipfile.ZipFile(path) as file:
        last = max(file.infolist(), key=lambda member: member.file_size)
    content = bytearray(path.read_bytes())
    content[last.header_offset + 600] ^= 1
    path.write_bytes(content)
    assert not all(torch.equal(torch.load(path)["model"][name], value) for name, value in STATE.items())
    with pytest.raises(CheckpointError, match=r"w\.pth is damaged: the checksum of \S+ in it is wrong; copy or"):
        read_weights(path)


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="PyTorch before 2.6")
def test_files_without_check_sums_are_loaded(tmp_path):
    path = tmp_path / "w.pth"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    new_torch(path)
    torch.serialization.set_crc32_options(before)
    assert read_weights(path)["model"].keys() == STATE.keys()


@pytest.mark.parametrize("start", [b"{", b"[", b"<", b"\n{", b"\x1f\x8b", b"PK", b"\x80\x02"])
def test_a_length_is_no_mark(tmp_path, start):
    """safetensors files begin with the length of their header, which may look like any other format."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    length = int.from_bytes(start, "little")
    length += 256 ** len(start) * (length < len(header))
    content = length.to_bytes(8, "little") + header.ljust(length) + struct.pack("<2f", 1, 2)
    (tmp_path / "w.pth").write_bytes(content)
    assert content.startswith(start)
    assert read_weights(tmp_path / "w.pth")["model"]["w"].tolist() == [1, 2]


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for name, content in members.items():
            target.writestr(name.replace("__", "/"), content)
    return file.getvalue()


def tar(name):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as target:
        target.addfile(tarfile.TarInfo(name))
    return file.getvalue()


def numpy_file():
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html><html><head><title>Google Drive -\n Quota exceeded</title></head></html>"
OTHERS = {
    "empty": (b"", "is empty"),
    "git-lfs": (POINTER, "is a Git LFS pointer, not the file itself: fetch that with `git lfs pull`"),
    "web page": (PAGE, "is a web page (Google Drive - Quota exceeded), not the file itself"),
    "web page without a title": (b"\xef\xbb\xbf<html>Not found</html>", "is a web page, not the file itself"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is an XML text"),
    "JSON": (b'{"message": "Not Found"}', "is a JSON text"),
    "gzip": (gzip.compress(b"weights"), "is a gzip archive: unpack it"),
    "tar": (tar("model.pth"), "is a tar archive: unpack it"),
    "zip": (zipped(weights__model_best="x"), "is a zip archive, but not from PyTorch (it contains weights/model_best"),
    "npz": (zipped(**{"a.npy": "x"}), "is a zip archive, but not from PyTorch (it contains a.npy)"),
    "pt2": (
        zipped(m__archive_format="pt2", m__byteorder="little"),
        "is an exported model: `instseg predict --model` runs it",
    ),
    "npy": (numpy_file(), "is a single NumPy array"),
    "Keras": (b"\x89HDF\r\n\x1a\n" + bytes(50), "is an HDF5 file"),
    "picture": (b"\x89PNG\r\n\x1a\n" + bytes(50), "is a picture"),
    "zeros": (
        bytes(5000),
        "is damaged: it begins with zeros, so it was never completely written;",
    ),
    "words": (b"hello, world", "is not a PyTorch, safetensors or pickle file: it begins with b'hello, world'"),
}


@pytest.mark.parametrize(("content", "expected"), OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("suffix", ["pth", "safetensors", "pkl"])
def test_other_files_are_named(tmp_path, capsys, content, expected, suffix):
    path = tmp_path / f"w.{suffix}"
    path.write_bytes(content)
    if suffix == "pkl" and expected.startswith("is not a PyTorch"):  # a pickle need not have a mark
        expected = "is damaged"
    for message in messages(path, tmp_path, capsys):
        assert f"{path} {expected}" in message
        assert "\n" not in message


def test_what_is_not_a_file(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    cases = [(tmp_path / "run", "is a folder: give a weight file (it contains none)")]
    (tmp_path / "full").mkdir()
    for name in ("model_final.pth", "model_best.pth", "log.txt"):
        (tmp_path / "full" / name).touch()
    cases.append((tmp_path / "full", "is a folder: give a weight file (it contains model_best.pth, model_final.pth)"))
    (tmp_path / "link.pth").symlink_to(tmp_path / "gone.pth")
    cases.append((tmp_path / "link.pth", f"is a link to {tmp_path}/gone.pth, which does not exist"))
    os.mkfifo(tmp_path / "pipe.pth")
    cases.append((tmp_path / "pipe.pth", "is a device or pipe: give a file"))
    for path, expected in cases:
        for message in messages(path, tmp_path, capsys):
            assert f"{path} {expected}." in message


@pytest.mark.filterwarnings("ignore:.*torch.jit.load")
def test_a_torchscript_model_is_not_a_state_dict(tmp_path, capsys):
    path = tmp_path / "w.pt"
    torch.jit.script(nn.Linear(2, 2)).save(path)
    for message in messages(path, tmp_path, capsys):
        assert (
            f"{path} is not loaded, because it holds more than weights and could run code: it is a TorchScript"
            in message
        )
    assert convert(["--trust", str(path), str(tmp_path / "clean.pth")]) == 0
    assert read_weights(tmp_path / "clean.pth")["model"].keys() == {"weight", "bias"}
