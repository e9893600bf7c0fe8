"""Timing and Markdown for the measurements on a GPU."""

import statistics
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from typing import Callable, TextIO

import torch


class Timer:
    """
    Median milliseconds of functions that take turns.

    On a GPU, time is measured between events on the stream, and the caches are overwritten before each run.
    """

    def __init__(self, device: str, repeats: int):
        self.on_gpu = torch.device(device).type == "cuda"
        self.repeats = repeats
        self.flush = torch.empty(2**28, dtype=torch.int8, device=device) if self.on_gpu else None

    def __call__(self, *functions: Callable[[], object]) -> list[float]:
        rounds = [[self._run(function) for function in functions] for _ in range(self.repeats + 1)]
        return [statistics.median(times) for times in zip(*rounds[1:])]

    def _run(self, function: Callable[[], object]) -> float:
        if not self.on_gpu:
            start = time.perf_counter()
            function()
            return 1000 * (time.perf_counter() - start)
        self.flush.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        stop.record()
        stop.synchronize()
        return start.elapsed_time(stop)


class Report:
    """Markdown that is written at once, so that nothing is lost if the rest fails; ``failures`` counts what failed."""

    def __init__(self, file: TextIO):
        self.file = file
        self.failures = 0

    def write(self, text: str) -> None:
        """A paragraph."""
        print(f"{text}\n", file=self.file, flush=True)

    def failed(self, error: Exception) -> str:
        """Counts the error; its traceback goes to the log. Returns its first line."""
        traceback.print_exc()
        self.failures += 1
        return f"failed: {(str(error) or type(error).__name__).splitlines()[0][:200]}"

    def table(self, headers: Sequence[str], rows: Iterable[Sequence]) -> None:
        """A table, row by row."""
        print(f"| {' | '.join(headers)} |\n|{'---|' * len(headers)}", file=self.file, flush=True)
        for row in rows:
            cells = (f"{x:.3g}" if isinstance(x, float) else str(x) for x in row)
            print(f"| {' | '.join(cells)} |", file=self.file, flush=True)
        print(file=self.file)

    def each(self, named: Iterable[tuple], measure: Callable) -> Iterator[list]:
        """[name, *row] for each row of ``measure(value)``, for (name, value) pairs; a failure has a row of its own."""
        for name, value in named:
            try:
                for row in measure(value):
                    yield [name, *row]
            except Exception as error:
                yield [name, self.failed(error)]
