"""
Process-wide settings for speed on a CPU. The commands use them; programs that use this package as a library decide for
themselves.

By default glibc returns every freed block over 32 MiB to the kernel, which clears its pages at the next allocation: for
large feature maps that costs as much as a memory-bound layer. Arithmetic with denormal numbers (below 1e-38 in float32)
is many times slower, and saturated sigmoids and their squares are full of them.
"""

import ctypes
import platform

import torch

__all__ = ["keep_freed_memory", "tune_cpu"]

# mallopt's parameters, from glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28}
# Where glibc's dynamic thresholds end up after large blocks have been freed.
_RETURN = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26, _TOP_PAD: 2**17}


def keep_freed_memory(keep: bool = True) -> bool:
    """
    Let the process keep freed memory (up to 2 GiB) for its next allocations, or restore the default.

    Returns:
        True if the C library is glibc and accepted the setting; otherwise nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in (_KEEP if keep else _RETURN).items())


def tune_cpu() -> None:
    """Keep freed memory and flush denormal numbers to 0. Call it before PyTorch starts its threads."""
    keep_freed_memory()
    torch.set_flush_denormal(True)
