"""
Settings of the whole process that make a CPU faster. The commands use them; a program that uses this package as a
library decides for itself.

By default glibc gives every freed block over 32 MiB back to the kernel, which clears its pages again at the next
allocation: on large feature maps that costs as much as a memory-bound layer. Denormal numbers (below 1e-38 in float32)
are computed many times slower than others, and saturated sigmoids and their squares are full of them.
"""

import ctypes
import platform

import torch

__all__ = ["keep_freed_memory", "tune_cpu"]

# Parameters of mallopt in glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28}
# Where glibc's own adaptive rule ends once large blocks have been freed.
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
    """Keep freed memory and take denormal numbers as 0. Call it before PyTorch starts its threads."""
    keep_freed_memory()
    torch.set_flush_denormal(True)
