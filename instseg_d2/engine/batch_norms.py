"""Batch normalisation in several processes."""

import torch.distributed as dist
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import nn

__all__ = ["share_buffers", "sync_batchnorm_on_cpu"]


def share_buffers(model: nn.Module) -> None:
    """
    Copy the first process's buffers, such as running statistics of batch norms, to all processes, so that all of them
    evaluate the model that is saved. Call it in all processes.
    """
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


def sync_batchnorm_on_cpu(model: nn.Module) -> nn.Module:
    """
    Replace every ``torch.nn.SyncBatchNorm``, which needs a GPU, by Detectron2's, which runs on any device; in place.
    Parameters, buffers and their names stay the same.
    """
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            if isinstance(norm, nn.SyncBatchNorm):
                other = NaiveSyncBatchNorm(norm.num_features, eps=norm.eps, momentum=norm.momentum, affine=norm.affine)
                for key, tensor in (*norm.named_parameters(), *norm.named_buffers()):
                    setattr(other, key, tensor)
                setattr(parent, name, other.train(norm.training))
    return model
