"""Seeded samples for the data loaders, in an order that can be entered at any batch."""

import contextlib
import itertools
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from ..errors import DatasetError, ImageError

__all__ = ["BatchIndices", "TestSamples", "TrainingSamples", "seeded"]

# An unreadable image is replaced by another; training stops after this many failures in a row.
_MAX_ATTEMPTS = 20


@contextlib.contextmanager
def seeded(*entropy: int):
    """Seed ``random``, ``numpy.random`` and PyTorch's CPU generator inside the block; restore them afterwards."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence([value % 2**63 for value in entropy]).generate_state(3, np.uint32)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.random.default_generator.manual_seed(int(words[2]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class BatchIndices:
    """
    The endless batches of this process: lists of (index, position, batch).

    ``index`` selects the image, ``position`` is its position in the stream of this process, ``batch`` is the number of
    the batch. All images of a batch belong to one group. The groups are known before any image is read, so
    ``start_iteration`` starts the stream exactly where an uninterrupted run would be.

    Args:
        sampler: endless iterable of the indices of this process, the same each time.
        batch_size: images per batch.
        groups: group of each index, or None for batches in plain order.
        start_iteration: number of batches to skip.
    """

    def __init__(self, sampler, batch_size: int, groups=None, start_iteration: int = 0):
        self.sampler = sampler
        self.batch_size = batch_size
        self.groups = groups
        self.start_iteration = start_iteration

    def _batches(self):
        waiting, number = {}, 0
        for position, index in enumerate(self.sampler):
            group = None if self.groups is None else self.groups[index]
            batch = waiting.setdefault(group, [])
            batch.append((index, position))
            if len(batch) == self.batch_size:
                yield [(*pair, number) for pair in waiting.pop(group)]
                number += 1

    def __iter__(self):
        return itertools.islice(self._batches(), self.start_iteration, None)


class TrainingSamples(Dataset):
    """
    Maps (index, position, batch) to (sample, errors).

    The random numbers of a sample depend only on (seed, rank, position). Its mapper is chosen from ``mappers`` by
    (seed, batch), so a batch has the same mapper in all processes. In the first ``mixed_batches`` batches its method
    ``mixed`` is called, which may draw further images, see `mixing.MixingMapper`. An unreadable image is replaced by
    another, drawn with the same random numbers; ``errors`` lists (file, message) of the failures. If the sample is
    None, nothing could be read or the data set is faulty; the last message says why.
    """

    def __init__(self, dataset, mappers: Sequence, seed: int, rank: int, mixed_batches: int = 0):
        self.dataset = dataset
        self.mappers = mappers
        self.seed = seed
        self.rank = rank
        self.mixed_batches = mixed_batches

    def _drawn(self) -> dict:
        return self.dataset[np.random.randint(len(self.dataset))]

    def __getitem__(self, place):
        index, position, batch = place
        mapper = self.mappers[np.random.default_rng([self.seed % 2**63, batch]).integers(len(self.mappers))]
        others = np.random.default_rng([self.seed % 2**63, self.rank, position])
        errors = []
        for _ in range(_MAX_ATTEMPTS):
            record = self.dataset[index]
            try:
                with seeded(self.seed, self.rank, position):
                    if batch < self.mixed_batches:
                        return mapper.mixed(record, self._drawn), errors
                    return mapper(record), errors
            except ImageError as error:
                errors.append((record.get("file_name", ""), str(error)))
            except DatasetError as error:
                return None, [*errors, ("", str(error))]
            index = int(others.integers(len(self.dataset)))
        return None, errors


class TestSamples(Dataset):
    """Maps an index to (sample, error message or None)."""

    __test__ = False  # not a test class

    def __init__(self, dataset, mapper):
        self.dataset = dataset
        self.mapper = mapper

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        try:
            return self.mapper(self.dataset[index]), None
        except DatasetError as error:
            return None, str(error)
