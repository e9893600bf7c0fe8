"""Loss normalisers, averaged over workers."""

import torch
import torch.distributed as dist
from detectron2.utils import comm


def mean_over_workers(values: torch.Tensor) -> torch.Tensor:
    """Detach a tensor and average it over all workers in one all-reduce."""
    world_size = comm.get_world_size()
    values = values.detach().clone()
    if world_size > 1:
        dist.all_reduce(values)
        values /= world_size
    return values
