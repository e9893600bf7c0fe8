"""Reads images, runs the network and draws at the same time; the results come in the order of the images."""

import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch

from ..inference.image_predictor import ImagePredictor

__all__ = ["FAILURES", "Item", "Pipeline", "failure"]

FAILURES = (ValueError, OSError, MemoryError, torch.cuda.OutOfMemoryError)  # of one image: it is skipped


def failure(error: Exception) -> Exception:
    """
    Why one image is skipped, without the traceback that keeps the failed tensors alive. On a CPU, PyTorch's
    RuntimeError for lack of memory becomes a MemoryError. Any other error that is not in FAILURES is raised.
    """
    if isinstance(error, FAILURES):
        return error.with_traceback(None)
    if isinstance(error, RuntimeError) and re.search("can't allocate memory|out of memory", str(error)):
        return MemoryError(f"out of memory ({str(error).splitlines()[0]})")
    raise error


@dataclass
class Item:
    """
    An image on its way.

    Attributes:
        number: its place in the order, from 0.
        task: what the caller said of it.
        image: (H, W, 3) uint8 RGB; record: the network's input, from `ImagePredictor.preprocess`.
        output: of the network, with masks as run lengths.
        result: of finishing.
        error: why the image is skipped.
        seconds: {stage: time it took}.
    """

    number: int
    task: Any
    image: Optional[np.ndarray] = None
    record: Optional[dict] = None
    output: Optional[dict] = None
    result: Any = None
    error: Optional[Exception] = None
    seconds: dict = field(default_factory=dict)


def _stage(name: str, function: Callable[[Item], None]) -> Callable[[Item], Item]:
    """The function as a stage: timed, left out after a failure, and its own failure noted."""

    def run(item: Item) -> Item:
        if item.error is None:
            start = time.perf_counter()
            try:
                function(item)
            except Exception as error:
                item.error = failure(error)
            item.seconds[name] = time.perf_counter() - start
        return item

    return run


def _in_order(pool: Executor, function: Callable, items: Iterable, ahead: int) -> Iterator:
    """The results of a function, in the order of the items, while the pool works on up to ``ahead`` further ones."""
    waiting = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


class Pipeline:
    """
    Runs images through reading, network and finishing.

    On a CPU each of ``batch`` threads takes an image through all three: two images on a core each are faster than one
    after the other on two cores, since not all work of a network can be shared out, and further threads would only
    take the cores from each other. Otherwise each step has threads of its own; on a GPU, and in exported files of a
    fixed batch, images run together if their padded sizes are the same. Padding then changes no result.

    Args:
        predictor: a predictor.
        batch: number of images at a time.
        score_threshold: see `ImagePredictor.outputs`.

    Attributes:
        batches, images: number of calls of the network so far, and of their images, if several run together.
        padding: share of the network's input that was padding, in these calls.
    """

    def __init__(self, predictor: ImagePredictor, batch: int, score_threshold: float):
        self.predictor, self.batch, self.score_threshold = predictor, batch, score_threshold
        self._together = batch if predictor.batches else 1
        self._networks = batch if predictor.on_cpu and not predictor.batches else 1
        self.batches = self.images = self._pixels = self._padded = 0

    @property
    def padding(self) -> float:
        return 1 - self._pixels / self._padded if self._padded else 0.0

    def run(
        self,
        tasks: Iterable,
        read: Callable[[Item], None],
        finish: Callable[[Item], None],
        between: Optional[Callable[[Item], None]] = None,
    ) -> Iterator[Item]:
        """
        Yield an item for each task, in their order.

        Args:
            read: sets an item's image and record. finish: sets its result. Both run in other threads; `FAILURES` in
                them, or in the network, are noted in the item. Other errors end the run.
            between: called with each item between network and finishing, in their order.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(max(1, threads // self._networks))
        items = (Item(number, task) for number, task in enumerate(tasks))
        load, draw = _stage("load", read), _stage("draw", finish)
        whole = self.predictor.on_cpu and not self.predictor.batches and between is None

        def through(item: Item) -> Item:
            return draw(*self._network([load(item)]))

        if whole and self.batch == 1:  # in this thread: PyTorch's own threads are slower when called from another
            yield from map(through, items)
            return
        sizes = [self.batch] if whole else [self.batch, self._networks, self.batch]
        pools = [ThreadPoolExecutor(workers) for workers in sizes]
        try:
            if whole:
                yield from _in_order(pools[0], through, items, self.batch)
                return
            groups = self._groups(_in_order(pools[0], load, items, 2 * self.batch))
            found = _sorted(_in_order(pools[1], self._network, groups, self._networks))
            found = found if between is None else map(_stage("track", between), found)
            yield from _in_order(pools[2], draw, found, self.batch)
        finally:
            for pool in pools:
                pool.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(threads)

    def _groups(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """Items that run together. At most 4 batches wait for others of their size."""
        groups: dict = {}
        waiting = 0
        for item in items:
            alone = self._together == 1 or item.error is not None
            key = item.number if alone else self.predictor.batch_key(item.record)
            groups.setdefault(key, []).append(item)
            waiting += 1
            full = alone or len(groups[key]) == self._together
            while full or waiting >= 4 * self._together:
                group = groups.pop(key if full else next(iter(groups)))  # else that which has waited longest
                waiting -= len(group)
                full = False
                yield group
        yield from groups.values()

    def _network(self, group: list[Item]) -> list[Item]:
        """Set the output of items of one size; of items that failed before there is one in a group."""
        if group[0].error is not None:
            return group
        start = time.perf_counter()
        error = self._predict(group)
        if error is None:
            for item in group:
                item.seconds["network"] = (time.perf_counter() - start) / len(group)
            self._count([item.record for item in group])
        elif len(group) > 1:  # perhaps the memory suffices for one
            return [item for single in group for item in self._network([single])]
        else:
            group[0].error = error
        return group

    def _predict(self, group: list[Item]) -> Optional[Exception]:
        """Set the outputs, or return what went wrong."""
        records = [item.record for item in group]
        try:
            outputs = self.predictor.outputs(records, self.score_threshold, masks="run_lengths")
        except Exception as error:
            return failure(error)
        for item, output in zip(group, outputs):
            item.output = output
        return None

    def _count(self, records: list[dict]) -> None:
        if self._together == 1:
            return
        self.batches += 1
        self.images += len(records)
        height, width = self.predictor.canvas(records[0]["image"])
        self._pixels += sum(record["image"].shape[1] * record["image"].shape[2] for record in records)
        self._padded += height * width * len(records)


def _sorted(groups: Iterable[list[Item]]) -> Iterator[Item]:
    """The items in their order; a group may be ahead of others."""
    waiting: dict[int, Item] = {}
    number = 0
    for group in groups:
        waiting.update((item.number, item) for item in group)
        while number in waiting:
            yield waiting.pop(number)
            number += 1
