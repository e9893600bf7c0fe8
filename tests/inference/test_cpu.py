"""Freed memory and denormal numbers: tuned by the commands, but not by a library user's Predictor."""

import multiprocessing
import platform
import resource
import statistics
import subprocess
import sys

import pytest
import torch

from instseg_d2.engine import argument_parser, setup
from instseg_d2.inference.cpu import keep_freed_memory, tune_cpu
from tests.processes import forked
from tests.scripts import call, registered_shapes, restore_logging  # noqa: F401 (a fixture)


def page_faults(keep):
    """The median over 15 allocations: the first few may need new memory, depending on where the heap starts."""
    assert keep_freed_memory(keep)
    faults = []
    for _ in range(15):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(25 * 2**20)  # 100 MiB
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return statistics.median(faults)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_page_faults():
    """In new processes, since the setting would persist, and what earlier tests did to the heap would count."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        keep, back = pool.map(page_faults, (True, False), chunksize=1)
    assert keep * 4 < back


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert keep_freed_memory() is False


def denormals():
    """A sum of denormal numbers, before and after, in a process of its own: the setting would persist."""
    torch.set_flush_denormal(False)  # another test may have called a command
    x = torch.full((9,), 1e-30)
    before = float((x * 1e-10).sum())
    tune_cpu()
    return before, float((x * 1e-10).sum())


def test_denormals_are_flushed():
    before, after = forked(denormals)[1]
    assert before > after == 0


PREDICTOR = """
import resource, statistics
import numpy as np
import torch

def state():
    faults = []
    for _ in range(9):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.zeros(25 * 2**20)  # 100 MiB
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return float((torch.full((9,), 1e-30) * 1e-10).sum()), statistics.median(faults)

print(*state())
from instseg_d2.inference.cpu import tune_cpu
from instseg_d2.engine import Predictor
from tests.tiny import tiny_config

Predictor(tiny_config("SparseInst", "INPUT.MIN_SIZE_TEST", 64), "")(np.zeros((64, 64, 3), np.uint8))
print(*state())
tune_cpu()
print(*state())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_a_predictor_changes_nothing_of_its_process():
    """Neither when built nor when called; the last line shows that the test would notice."""
    done = subprocess.run([sys.executable, "-c", PREDICTOR], capture_output=True, text=True, check=True)
    before, after, tuned = ([float(x) for x in line.split()] for line in done.stdout.splitlines()[-3:])
    assert after[0] == before[0] > 0
    assert after[1] > before[1] / 2 > 2 * tuned[1]
    assert tuned[0] == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("predict", ["--weights", "absent.pth", "--input", "absent.jpg", "--output", "out"]),
        ("export", ["--format", "pt2", "--output", "x.pt2", "--images", "absent.jpg"]),
        ("bench", ["--config-file", "absent.yaml"]),
    ],
)
def test_the_commands_ask_for_it(monkeypatch, name, words):
    asked = []
    monkeypatch.setattr("instseg_d2.inference.cpu.tune_cpu", lambda: asked.append(name))
    with pytest.raises((ValueError, OSError), match="absent"):
        call(name, words)
    assert asked == [name]


def test_training_on_a_cpu_asks_for_it(monkeypatch, tmp_path):
    """Also in `compare`, through the same set-up."""
    asked = []
    monkeypatch.setattr(sys.modules[setup.__module__], "tune_cpu", lambda: asked.append("setup"))
    words = ["--num-gpus", "0", "OUTPUT_DIR", str(tmp_path / "out"), "DATASETS.TRAIN", "('cpu_shapes',)"]
    with registered_shapes(tmp_path, cpu_shapes=1):
        setup(argument_parser().parse_args(words))
    assert asked == ["setup"]
