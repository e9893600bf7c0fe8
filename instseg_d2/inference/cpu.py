"""
Settings of the process on a CPU: how the C library treats freed memory, and denormal numbers.

By default glibc gives every freed block over 32 MiB back to the kernel, which clears its pages again at the next
allocation: on large feature maps that costs as much as a memory-bound layer. Denormal numbers (in float32 below 1e-38)
are computed many times slower than others, and saturated sigmoids and their squares are full of them.
"""

import ctypes
import platform

import torch

__all__ = ["keep_freed_memory", "tune_cpu"]

# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28}
# What glibc's own adaptive rule arrives at once large blocks have been freed.
_RETURN = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26, _TOP_PAD: 2**17}


def keep_freed_memory(keep: bool = True) -> bool:
    """
    Let the process keep freed memory for its next allocations (up to 2 GiB of it), or restore the default.

    Returns:
        True if the C library is glibc and took the setting; elsewhere nothing changes.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in (_KEEP if keep else _RETURN).items())


def tune_cpu() -> None:
    """What every run on a CPU wants, before other threads start: freed memory kept, denormal numbers taken as 0."""
    keep_freed_memory()
    torch.set_flush_denormal(True)
