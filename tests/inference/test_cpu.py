"""Freed memory stays with the process, or goes back, as asked; denormal numbers are 0."""

import platform
import subprocess
import sys

import pytest

from instseg_d2.inference.cpu import keep_freed_memory

CODE = """
import resource, statistics, sys
import torch
from instseg_d2.inference.cpu import keep_freed_memory
assert keep_freed_memory(sys.argv[1] == "keep")
faults = []
for _ in range(15):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(25 * 2**20)  # 100 MiB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(statistics.median(faults))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_page_faults():
    """The median of 15 allocations: the first few may take new memory, depending on where the heap begins."""
    keep, back = (
        float(subprocess.run([sys.executable, "-c", CODE, way], capture_output=True, text=True, check=True).stdout)
        for way in ("keep", "return")
    )
    assert keep * 4 < back


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert keep_freed_memory() is False


def test_denormals_are_flushed():
    """In processes of their own: what one test sets would stay for all after it."""
    code = "import torch; from instseg_d2.inference.cpu import tune_cpu; {}; "
    code += "print(float((torch.full((9,), 1e-30) * 1e-10).sum()))"
    printed = [
        subprocess.run([sys.executable, "-c", code.format(call)], capture_output=True, text=True, check=True).stdout
        for call in ("tune_cpu()", "pass")
    ]
    assert float(printed[0]) == 0
    assert float(printed[1]) > 0
