"""Measures the memory of a training step, and finds the largest batch that fits."""

import itertools
import logging
import math
import weakref

import torch
from detectron2.config import CfgNode
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .minutes import trial
from .trainer import Trainer

__all__ = ["PeakMemory", "largest_batch"]

logger = logging.getLogger(__name__)

SAMPLES = 16  # of the training set


class PeakMemory(TorchDispatchMode):
    """
    A context that counts the bytes of the tensors that operators create, while they live. It works on every device and
    always gives the same numbers, but does not see what an operator needs inside.

    Attributes:
        peak: the most bytes at any time.
    """

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._bytes = 0
        self._known = set()  # addresses of storages

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given | self._known:  # otherwise a view
                self._known.add(storage._cdata)
                self._bytes += storage.nbytes()
                self.peak = max(self.peak, self._bytes)
                weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())
        return result

    def restart(self) -> None:
        """Forget the peak so far."""
        self.peak = self._bytes

    def _remove(self, address: int, size: int) -> None:
        self._known.discard(address)
        self._bytes -= size


def _storages(tree) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class _PeakOnGpu:
    """`PeakMemory` as PyTorch's allocator counts it, which sees everything."""

    def __enter__(self):
        self._before = torch.cuda.memory_allocated()
        self.restart()
        return self

    def __exit__(self, *_):
        pass

    def restart(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    @property
    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() - self._before


def largest_batch(cfg: CfgNode, limit: float, trainer_class: type = Trainer) -> int:
    """
    The number of images with which a training step needs at most ``limit`` bytes, in one process: on the line through
    the gradients of one and of two images. Weights, gradients, the optimiser's state and the average of the weights are
    included. The largest of a few training samples stands for all. Random numbers are not affected.

    Args:
        cfg: of the training; its data sets are registered.

    Returns:
        the number; 0 if not even one image fits.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.NUM_WORKERS = 0
    peaks = []
    with (
        _PeakOnGpu() if cfg.MODEL.DEVICE.startswith("cuda") else PeakMemory() as memory,
        trial(cfg, trainer_class) as trainer,
        EventStorage(0) as trainer.storage,
    ):
        drawn = itertools.islice(itertools.chain.from_iterable(trainer.batches), SAMPLES)
        largest = max(drawn, key=lambda sample: sample["image"].numel())
        trainer.batches.close()
        trainer.iter, trainer.batches = 0, (batch for batch in itertools.repeat([largest]))
        trainer.run_step()  # makes the optimiser's state; the gradients stay
        whole = memory.peak
        for count in (1, 2):
            memory.restart()
            trainer.add_gradient([largest] * count, 1, last=True)
            peaks.append(memory.peak)
    one, two = peaks
    logger.info("Images of a batch need %.3g GiB each, the rest %.3g.", (two - one) / 2**30, (2 * one - two) / 2**30)
    return 0 if whole > limit else max(0, 1 + math.floor((limit - one) / max(two - one, 1)))
