"""
A batch sent by a worker process as one block of shared memory.

PyTorch's loader sends every tensor by itself, and training waits for a connection to the worker for each. A batch of
four images with boxes, classes and masks has twenty tensors.
"""

import io
import os
import pickle
from typing import NamedTuple

import torch

from ..errors import WorkerError

__all__ = ["Packed", "pack", "unpack"]

_ALIGNMENT = 64  # bytes; what vector instructions and every dtype are content with


class Packed(NamedTuple):
    """A pickle, its out-of-band buffers one after the other in ``block`` (uint8), and where each of them lies."""

    pickled: bytes
    block: torch.Tensor
    places: list  # (start, end) in bytes


def _numpy_of(tensor: torch.Tensor):
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError):  # a dtype that NumPy lacks; on a device; with a gradient
        return None


class _Pickler(pickle.Pickler):
    """Tensors as NumPy arrays, whose memory protocol 5 leaves out."""

    def reducer_override(self, value):
        array = _numpy_of(value) if type(value) is torch.Tensor else None
        return NotImplemented if array is None else (torch.from_numpy, (array,))


def _shared(nbytes: int) -> torch.Tensor:
    """Shared memory. PyTorch would move the block there later, in a thread of the worker whose errors nobody hears."""
    try:
        return torch.empty(nbytes, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise WorkerError(
            f"{_shared_memory()} has no room for a batch of {nbytes / 2**20:.0f} MiB: make it larger (docker run "
            "--shm-size 2g) or set DATALOADER.NUM_WORKERS 0."
        ) from error


def _shared_memory(path: str = "/dev/shm") -> str:
    """The name of the shared memory, with its size and what is free where the system tells."""
    if not os.path.isdir(path):
        return "the shared memory"
    status = os.statvfs(path)
    size, free = (blocks * status.f_frsize / 2**20 for blocks in (status.f_blocks, status.f_bavail))
    return f"{path} ({size:.0f} MiB, {free:.0f} MiB free)"


def pack(batch) -> Packed:
    """
    ``batch`` is anything that can be pickled; the memory of its contiguous tensors and arrays of any shape goes into
    the block (uint8, as many bytes as they have, each from a multiple of 64 on).

    Raises:
        WorkerError: no room in the shared memory.
    """
    file, buffers = io.BytesIO(), []
    _Pickler(file, protocol=5, buffer_callback=buffers.append).dump(batch)
    parts, places, end = [buffer.raw() for buffer in buffers], [], 0
    for part in parts:
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        end = start + part.nbytes
        places.append((start, end))
    block = _shared(end)
    memory = memoryview(block.numpy())
    for part, (start, end) in zip(parts, places):
        memory[start:end] = part
    return Packed(file.getvalue(), block, places)


def unpack(packed: Packed):
    """What was packed. Its tensors and arrays share the block, which lives as long as any of them."""
    memory = memoryview(packed.block.numpy())
    return pickle.loads(packed.pickled, buffers=[memory[start:end] for start, end in packed.places])
