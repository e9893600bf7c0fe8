"""The machine that a recipe is made for."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.utils import comm

__all__ = ["Machine", "this_machine"]

_GIB = 2**30


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


def _number(path: str, key: str = "") -> float:
    """The number after ``key`` in a file of the kernel; infinite if there is none."""
    try:
        text = Path(path).read_text(encoding="ascii")
        return float(text.partition(key)[2].split()[0])
    except (OSError, ValueError, IndexError):
        return float("inf")


def _free_memory() -> float:
    """Free main memory in GiB, within the limit of a container; 4 where that is unknown. Cached files can be freed."""
    available = 1024 * _number("/proc/meminfo", "MemAvailable:")
    group = "/sys/fs/cgroup/memory."
    cached = _number(f"{group}stat", "\ninactive_file ")
    used = _number(f"{group}current") - (cached if cached < float("inf") else 0)
    free = min(available, max(_number(f"{group}max") - min(used, 1e18), 0)) / _GIB
    return free if free < float("inf") else 4.0


def this_machine(num_gpus: int, num_processes: int, num_machines: int) -> Machine:
    """The machine as the arguments of `arguments.add_processes` use it, or a running job, as of torchrun."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = min(num_gpus, torch.cuda.device_count())
    local = max(gpus or num_processes, 1)
    total = local * num_machines
    if comm.get_world_size() > 1:
        local, total = comm.get_local_size(), comm.get_world_size()
    memory = torch.cuda.mem_get_info()[0] / _GIB if gpus else _free_memory() / local  # of this process's GPU
    return Machine(gpus > 0, memory, total, max(cores // local, 1))
