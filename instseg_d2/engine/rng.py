"""Saves and restores the state of all random number generators as plain data."""

import contextlib
import random

import numpy as np
import torch

__all__ = ["get_rng_state", "preserve_rng_state", "set_rng_state"]


def get_rng_state() -> dict:
    """State of Python's, NumPy's and PyTorch's generators (CPU and current GPU), as tensors and builtin types."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def set_rng_state(state: dict) -> None:
    """Restore what :func:`get_rng_state` returned; the GPU's state only if there is a GPU."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextlib.contextmanager
def preserve_rng_state():
    """Restore the generators after the block."""
    state = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(state)
