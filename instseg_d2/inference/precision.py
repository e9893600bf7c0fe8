"""Chooses the dtype of mixed precision."""

import logging

import torch

__all__ = ["autocast_type"]

logger = logging.getLogger(__name__)


def _cpu_has_bfloat16() -> bool:
    """True if the CPU has bfloat16 arithmetic; otherwise PyTorch emulates it, slower than float32."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, bool)() for name in checks)


def autocast_type(enabled: bool, device: torch.device):
    """
    The dtype of mixed precision: float16 on a GPU, bfloat16 on a CPU that supports it, None for plain float32.

    Args:
        enabled: SOLVER.AMP.ENABLED.
    """
    if not enabled:
        return None
    if device.type == "cuda":
        return torch.float16
    if not _cpu_has_bfloat16():
        logger.info("SOLVER.AMP.ENABLED has no effect: this CPU has no bfloat16 arithmetic.")
        return None
    return torch.bfloat16
