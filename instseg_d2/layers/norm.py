"""Builds normalisation layers by name, folds them into convolutions, and keeps their statistics."""

import contextlib
from typing import Optional

import torch
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm
from detectron2.layers import get_norm as _detectron2_norm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights

_NONE = ("", "none")


def get_norm(name: Optional[str], channels: int) -> Optional[nn.Module]:
    """
    Build the normalisation layer that a config calls ``name``.

    Args:
        name: one of Detectron2's names (BN, SyncBN, FrozenBN, GN, LN, naiveSyncBN), NaiveGN (AdelaiDet's name of GN),
            or "", "none" or None for no layer.
        channels: C of the input (N, C, h, w).

    Raises:
        ValueError: the name is unknown.
    """
    if name is None or name in _NONE:
        return None
    if name in ("GN", "NaiveGN"):
        return nn.GroupNorm(32, channels)
    if name == "NaiveSyncBN":
        return NaiveSyncBatchNorm(channels)
    try:
        return _detectron2_norm(name, channels)
    except KeyError:
        raise ValueError(f"norm {name!r} is unknown; use GN, BN, SyncBN, FrozenBN, LN or none.") from None


@torch.no_grad()
def fold_norm(conv: nn.Module, norm: Optional[nn.Module]) -> bool:
    """
    Fold a batch norm, frozen or in eval mode, into the convolution before it, in place.

    Returns:
        whether it was folded; other norms are not changed.
    """
    if not isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)):
        return False
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    return True


@contextlib.contextmanager
def untouched_statistics(module: nn.Module):
    """In this context the batch norms of a module update copies of their running statistics, which are then dropped."""
    norms = [x for x in module.modules() if isinstance(x, _BatchNorm) and x.training]
    kept = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, kept):
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept):
            norm._buffers.update(buffers)
