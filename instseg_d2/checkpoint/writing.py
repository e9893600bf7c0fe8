"""Writes weight files completely or not at all."""

import errno
import json
from typing import Callable, Optional

import torch

from ..errors import CheckpointError
from ..files import atomic_write

__all__ = ["save_safetensors", "write_checkpoint_file"]


def _is_full(error: Optional[BaseException]) -> bool:
    """True if the disk or quota is full; torch.save may hide this behind a RuntimeError."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_checkpoint_file(path: str, write: Callable) -> None:
    """
    Write a file completely or not at all.

    Args:
        path: the file to create or replace.
        write: called with the open binary file.

    Raises:
        CheckpointError: the disk is full; an earlier file at ``path`` is intact.
    """
    try:
        with atomic_write(path) as temporary, open(temporary, "wb") as file:
            write(file)
    except Exception as error:
        if _is_full(error):
            raise CheckpointError(
                f"no space left to write {path}; earlier files are intact: free some space, then continue with "
                "--resume."
            ) from error
        raise


def save_safetensors(path: str, state_dict: dict, cfg: Optional[str] = None, **lists) -> None:
    """
    Save weights as a safetensors file, optionally with the other entries of this package's checkpoints: the config
    (YAML text) and the lists ``class_names``, ``category_ids`` and ``stuff_names``.

    Raises:
        CheckpointError: the disk is full.
    """
    from safetensors.torch import save

    info = {}
    if cfg is not None:
        info["cfg"] = cfg
    info.update({key: json.dumps(list(values)) for key, values in lists.items() if values is not None})
    # The format needs dense tensors that do not share memory.
    tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state_dict.items()}
    write_checkpoint_file(path, lambda file: file.write(save(tensors, metadata=info)))
