"""The machine that a recipe is made for."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.utils import comm

__all__ = ["Machine", "free_memory", "this_machine"]

_GIB = 2**30
_GROUPS = (  # of Linux, versions 1 and 2: folder, files of the limit and of the use, key of the cached files
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ("", "memory.max", "memory.current", "inactive_file"),
)


@dataclass(frozen=True)
class Machine:
    """
    Attributes:
        gpu: train on GPUs.
        memory: free memory for each process, GiB.
        processes: number of processes of the training.
        cores: CPU cores for each process.
    """

    gpu: bool
    memory: float
    processes: int = 1
    cores: int = 2


def _number(path: Path, key: str = "", unknown: float = float("inf")) -> float:
    """The number after ``key`` in a file of the kernel; ``unknown`` if there is none."""
    try:
        text = path.read_text(encoding="ascii")
        return float(text[text.index(key) + len(key) :].split()[0])
    except (OSError, ValueError, IndexError):
        return unknown


def free_memory(root="/") -> float:
    """Free main memory in GiB, within the limit of a container; 4 where that is unknown. Cached files can be freed."""
    free = [1024 * _number(Path(root, "proc/meminfo"), "MemAvailable:")]
    for folder, limit, usage, cached in _GROUPS:
        group = Path(root, "sys/fs/cgroup", folder)
        used = _number(group / usage, unknown=0) - _number(group / "memory.stat", f"\n{cached} ", unknown=0)
        free.append(max(_number(group / limit) - used, 0))
    return min(free) / _GIB if min(free) < float("inf") else 4.0


def this_machine(num_gpus: int, num_processes: int, num_machines: int) -> Machine:
    """The machine as the arguments of `arguments.add_processes` use it, or a running job, as of torchrun."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = min(num_gpus, torch.cuda.device_count())
    local = max(gpus or num_processes, 1)
    total = local * num_machines
    if comm.get_world_size() > 1:
        local, total = comm.get_local_size(), comm.get_world_size()
    memory = torch.cuda.mem_get_info()[0] / _GIB if gpus else free_memory() / local  # of this process's GPU
    return Machine(gpus > 0, memory, total, max(cores // local, 1))
