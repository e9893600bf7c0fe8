"""Measures the memory of tensors."""

import weakref

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


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

    def _remove(self, address: int, size: int) -> None:
        self._known.discard(address)
        self._bytes -= size


def _storages(tree) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
