"""
Sends a batch from a worker process as one block of shared memory.

PyTorch's loader sends every tensor separately, and training waits for a connection to the worker each time. A batch of
four images with boxes, classes and masks has twenty tensors.
"""

import io
import os
import pickle
from typing import NamedTuple

import torch

from ..errors import WorkerError

__all__ = ["Packed", "pack", "unpack"]

_ALIGNMENT = 64  # bytes; enough for vector instructions and every dtype


class Packed(NamedTuple):
    """A pickle, its out-of-band buffers concatenated in ``block`` (uint8), and their positions there."""

    pickled: bytes
    block: torch.Tensor
    places: list  # (start, end) in bytes


def _numpy_of(tensor: torch.Tensor):
    try:
        return tensor.numpy()
    except (TypeError, RuntimeError):  # a dtype that NumPy lacks, on a device, or with a gradient
        return None


class _Pickler(pickle.Pickler):
    """Pickles tensors as NumPy arrays, so that protocol 5 keeps their memory out of band."""

    def reducer_override(self, value):
        array = _numpy_of(value) if type(value) is torch.Tensor else None
        return NotImplemented if array is None else (torch.from_numpy, (array,))


def _shared(nbytes: int) -> torch.Tensor:
    """Allocate shared memory. PyTorch would do so later, in a thread of the worker that loses errors."""
    try:
        return torch.empty(nbytes, dtype=torch.uint8).share_memory_()
    except RuntimeError as error:
        raise WorkerError(
            f"{_shared_memory()} has no room for a batch of {nbytes / 2**20:.0f} MiB: enlarge it (docker run "
            "--shm-size 2g) or set DATALOADER.NUM_WORKERS 0."
        ) from error


def _shared_memory(path: str = "/dev/shm") -> str:
    """The name of the shared memory, with its total and free size if the system reports them."""
    if not os.path.isdir(path):
        return "the shared memory"
    status = os.statvfs(path)
    size, free = (blocks * status.f_frsize / 2**20 for blocks in (status.f_blocks, status.f_bavail))
    return f"{path} ({size:.0f} MiB, {free:.0f} MiB free)"


def pack(batch) -> Packed:
    """
    Pack a batch, which may be any picklable object. The memory of its contiguous tensors and arrays goes into the
    block, each starting at a multiple of 64 bytes.

    Raises:
        WorkerError: there is not enough shared memory.
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
    """Unpack a batch. Its tensors and arrays share the block, which lives as long as any of them."""
    memory = memoryview(packed.block.numpy())
    return pickle.loads(packed.pickled, buffers=[memory[start:end] for start, end in packed.places])
