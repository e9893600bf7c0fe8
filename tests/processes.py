"""Forked processes: they do not import PyTorch and Detectron2 again, which takes five seconds each."""

import contextlib
import multiprocessing

import pytest
import torch.multiprocessing as mp


def forked(function, *args):
    """Call a function in a process of its own: (exit status, or -N where signal N killed it; what it returned)."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def run():
        sender.send(function(*args))

    process = context.Process(target=run)
    process.start()
    sender.close()
    try:
        returned = receiver.recv()
    except EOFError:
        returned = None
    process.join()
    return process.exitcode, returned


@contextlib.contextmanager
def forking(method="fork"):
    """
    `launch` forks in this block what it spawns for a user; tests/engine/test_setup.py has spawned processes.

    Args:
        method: "forkserver" for gradients. PyTorch refuses them in a fork of a process that has had gradients and a
            device besides the CPU, which can be the one of tests/pretend_device.py.
    """
    multiprocessing.set_forkserver_preload(["instseg_d2.engine"])
    start = mp.start_processes

    def fork(*args, **options):
        return start(*args, **{**options, "start_method": method})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mp, "start_processes", fork)
        yield
