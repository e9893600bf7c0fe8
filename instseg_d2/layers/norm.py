"""Normalisation layers by their names in configs."""

from typing import Optional

from detectron2.layers import NaiveSyncBatchNorm
from detectron2.layers import get_norm as _detectron2_norm
from torch import nn

_NONE = ("", "none")


def get_norm(name: Optional[str], channels: int) -> Optional[nn.Module]:
    """
    The normalisation layer called ``name`` in a config.

    Args:
        name: one of Detectron2's names (BN, SyncBN, FrozenBN, GN, LN, naiveSyncBN), NaiveGN (AdelaiDet's name of
            the same formula as GN), or "", "none", None for no layer.
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
