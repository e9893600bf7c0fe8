"""A data loader worker that dies, fails or cannot send: the run ends with one sentence."""

import faulthandler
import os
import re
import signal
import sys
import tempfile
import time

import pytest
import torch

from instseg_d2.data import build_test_loader, build_train_loader, packing
from instseg_d2.data.loader import _drawn, _torch_loader
from instseg_d2.data.packing import pack
from instseg_d2.data.samples import TestSamples
from instseg_d2.errors import WorkerError, is_user_error, sentence

MAIN = os.getpid()
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals and limits of Linux")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def crashed():
    faulthandler.disable()  # pytest's, which would print where
    os.kill(os.getpid(), signal.SIGABRT)


def bus_error():
    """What writing to a full /dev/shm does."""
    os.kill(os.getpid(), signal.SIGBUS)
    time.sleep(60)


def without_sockets():
    """Like a TMPDIR that is too long for a socket: sending the batch fails in a thread."""
    tempfile.tempdir = "/none"


def no_shared_memory():
    def full(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: Resource unavailable (11)")

    torch.Tensor.share_memory_ = full


def failed():
    raise MemoryError("Unable to allocate 9 GiB")


class Mapper:
    """Calls ``act`` in the worker that reads an image."""

    def __init__(self, fault):
        self.fault = fault

    def __call__(self, record):
        assert os.getpid() != MAIN
        self.fault()
        return {"image": torch.zeros(3, 64, 64), "file_name": record["file_name"]}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (killed, "a data loader worker was killed, probably for lack of memory: lower DATALOADER"),
        (crashed, r"a data loader worker died \(signal: Aborted\): .* DATALOADER.NUM_WORKERS 0 to load"),
        (bus_error, r"a data loader worker ran out of shared memory \(/dev/shm\): .*--shm-size 2g\) or set DATALOADER"),
        (without_sockets, r"a data loader worker died \(exited unexpectedly\)"),
        (
            no_shared_memory,
            r"^/dev/shm \(\d+ MiB, \d+ MiB free\) has no room for a batch of 0 MiB: enlarge it \(do",
        ),
        (failed, "Unable to allocate 9 GiB"),
    ],
)
def test_the_run_ends_with_the_cause(cfg, shapes, capfd, fault, message, training):
    cfg.DATASETS.TRAIN, cfg.DATALOADER.NUM_WORKERS = (shapes,), 1
    mapper = Mapper(fault)
    loader = build_train_loader(cfg, mapper) if training else build_test_loader(cfg, shapes, mapper)
    with pytest.raises((RuntimeError, MemoryError)) as caught:
        for _ in loader:
            pass
    assert is_user_error(caught.value) or fault is failed
    assert re.search(message, sentence(caught.value))
    if fault is without_sockets:
        assert "error: a data loader worker cannot send a batch: " in capfd.readouterr().err


def test_a_full_shared_memory_is_measured(monkeypatch, tmp_path):
    no_room = RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    def share_memory_(tensor):
        raise no_room

    monkeypatch.setattr(torch.Tensor, "share_memory_", share_memory_)
    size = os.statvfs("/dev/shm")
    with pytest.raises(WorkerError, match=rf"^/dev/shm \({size.f_blocks * size.f_frsize / 2**20:.0f} MiB, .* of 3 MiB"):
        pack(torch.zeros(3, 1024, 1024, dtype=torch.uint8))
    assert packing._shared_memory(str(tmp_path / "none")) == "the shared memory"


@pytest.mark.parametrize("error", [EOFError(), ConnectionResetError(104, "Connection reset by peer")])
def test_a_batch_that_does_not_arrive(cfg, shapes, monkeypatch, error):
    cfg.DATALOADER.NUM_WORKERS = 1
    loader = build_test_loader(cfg, shapes)

    def lost(packed):
        raise error

    monkeypatch.setattr("instseg_d2.data.loader.unpack", lost)
    with pytest.raises(WorkerError, match=r"cannot receive a batch from its worker.*DATALOADER.NUM_WORKERS 0"):
        next(iter(loader))


def test_a_connection_that_an_image_needed():
    """A connection error from reading an image is not one between the processes."""

    def refuse(record):
        raise ConnectionRefusedError("no such server")

    samples = TestSamples([{}], refuse)
    with pytest.raises(ConnectionRefusedError, match="no such server"):
        next(_drawn(_torch_loader(samples, 1)))
