"""Normalisers of losses over all workers."""

import torch
import torch.distributed as dist
from detectron2.utils import comm


def mean_over_workers(values: torch.Tensor) -> torch.Tensor:
    """The mean of a tensor over all workers, detached, in one all-reduce; the tensor itself with one worker."""
    world_size = comm.get_world_size()
    values = values.detach().clone()
    if world_size > 1:
        dist.all_reduce(values)
        values /= world_size
    return values
