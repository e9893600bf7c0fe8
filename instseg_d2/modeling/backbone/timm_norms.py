"""Freezes the batch norms of timm's networks, or folds them into the convolutions before them."""

import itertools

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from ...layers import DeformConv, fold_norm

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class FrozenBatchNorm1d(FrozenBatchNorm2d):
    """A frozen batch norm for vectors and sequences."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C) or (N, C, L) -> the same shape and dtype."""
        return super().forward(x.reshape(*x.shape, *[1] * (4 - x.dim()))).reshape(x.shape)


class FrozenBatchNormAct2d(FrozenBatchNorm2d):
    """A frozen version of timm's batch norms with an activation."""

    def __init__(self, norm: nn.BatchNorm2d):
        super().__init__(norm.num_features, norm.eps)
        self.drop = norm.drop
        self.act = norm.act

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, h, w) -> the same shape and dtype."""
        return self.act(self.drop(super().forward(x)))


def freeze_norms(module: nn.Module) -> nn.Module:
    """Replace batch norms by frozen ones, which keep the input's dtype; in place, unless the module is a norm."""
    if isinstance(module, BATCH_NORMS):
        if hasattr(module, "act"):
            frozen = FrozenBatchNormAct2d(module)
        else:
            kind = FrozenBatchNorm1d if isinstance(module, nn.BatchNorm1d) else FrozenBatchNorm2d
            frozen = kind(module.num_features, module.eps)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(frozen, name).copy_(getattr(module, name).detach())
        return frozen
    for name, child in module.named_children():
        setattr(module, name, freeze_norms(child))
    return module


def _pairs(net: nn.Module):
    """Yield (convolution, owner of the norm, name of the norm) of pairs that follow each other by name or order."""
    for module in net.modules():
        children = dict(module.named_children())
        if isinstance(module, nn.Sequential):
            names = list(children)
            pairs = [(children[a], b) for a, b in zip(names, names[1:])]
        else:
            # Modules are registered in the order in which they run. DPN's norms run before their convolutions.
            pairs = [
                (children[a], b)
                for a, b in itertools.combinations(children, 2)
                if a == f"conv{b[2:]}" and b[:2] == "bn"
            ]
        for conv, name in pairs:
            last = conv[-1] if isinstance(conv, nn.Sequential) else conv
            if type(last) is nn.Conv2d or isinstance(last, DeformConv):
                yield last, module, name


def fold_timm_norms(net: nn.Module) -> None:
    """Fold the batch norms of ResNets, CSPNets and similar networks into convolutions, in place; for inference only."""
    for conv, owner, name in list(_pairs(net)):
        norm = getattr(owner, name)
        if fold_norm(conv, norm):
            setattr(owner, name, getattr(norm, "act", nn.Identity()))
