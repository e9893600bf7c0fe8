"""Synchronised batch normalisation for processes on the CPU."""

from detectron2.layers import NaiveSyncBatchNorm
from torch import nn

__all__ = ["sync_batchnorm_on_cpu"]


def sync_batchnorm_on_cpu(model: nn.Module) -> nn.Module:
    """
    Replace every ``torch.nn.SyncBatchNorm``, which needs a GPU, by Detectron2's, which runs anywhere; in place.

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
