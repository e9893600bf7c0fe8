#!/usr/bin/env python3
"""
Time prediction on Ray with 1, 2, ... workers of one core against a plain loop in one process, and note the memory.

Compares the results too: each image must be in the output once, with the loop's objects.
"""

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import ray
import torch
from tabulate import tabulate

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from instseg_d2.apps.batch_predictor import BatchPredictor
from instseg_d2.apps.inputs import find_inputs
from instseg_d2.apps.parquet import read_rows
from instseg_d2.apps.ray_engine import PART_SIZE, predict_on_ray
from instseg_d2.console import run_script

HEADERS = ["", "seconds", "images a second", "speed", "driver, MiB", "a worker, MiB, early", "late"]


def memory(pid) -> float:
    """Resident memory of a process in MiB; 0 if it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (FileNotFoundError, ProcessLookupError):
        return 0.0


def workers() -> list[int]:
    """The processes of Ray's actors that predict."""
    names = ((path.parent.name, path.read_bytes()) for path in Path("/proc").glob("[0-9]*/cmdline"))
    return [int(pid) for pid, name in names if b"ray::" in name and b"PartPredictor" in name]


class Watch(threading.Thread):
    """Notes the largest worker's memory every half second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.ended, self.samples = threading.Event(), []
        self.start()

    def run(self):
        while not self.ended.wait(0.5):
            sizes = [memory(pid) for pid in workers()]
            if sizes:
                self.samples.append(max(sizes))

    def stop(self) -> list[float]:
        """The medians of the second and the last quarter."""
        self.ended.set()
        self.join()
        quarter = max(1, len(self.samples) // 4)
        return [
            statistics.median(part or [0.0]) for part in (self.samples[quarter : 2 * quarter], self.samples[-quarter:])
        ]


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", required=True, help="checkpoint or exported file")
    parser.add_argument("--input", nargs="+", required=True, help="photos, repeated until there are --images")
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--score-threshold", type=float, default=0.5)
    return parser.parse_args(arguments)


def repeated(files, count: int, folder: str) -> list[str]:
    """So many links to the files."""
    links = []
    for number in range(count):
        file = os.path.abspath(files[number % len(files)])
        links.append(os.path.join(folder, f"{number:06}{os.path.splitext(file)[1]}"))
        os.symlink(file, links[-1])
    return links


def main(args) -> None:
    torch.set_num_threads(1)
    predictor = BatchPredictor(args.weights, score_threshold=args.score_threshold)
    with tempfile.TemporaryDirectory() as folder:
        links = repeated(find_inputs(args.input), args.images, folder)
        listed = os.path.join(folder, "list.txt")
        Path(listed).write_text("\n".join(links))
        predictor({"path": links[:2]})
        start, expected = time.perf_counter(), {}
        for first in range(0, len(links), PART_SIZE):
            found = predictor({"path": links[first : first + PART_SIZE]})
            expected.update(zip(found["path"], map(len, found["scores"])))
        plain = time.perf_counter() - start
        rows = [["plain loop, one thread", plain, args.images / plain, 1.0, memory(os.getpid()), None, None]]
        for count in args.workers:
            options = {"object_store_memory": 200 << 20, "include_dashboard": False, "log_to_driver": False}
            ray.init("local", num_cpus=count, **options)
            output, watch, start = os.path.join(folder, f"out{count}"), Watch(), time.perf_counter()
            predict_on_ray(predictor, [listed], output)
            seconds, sizes = time.perf_counter() - start, watch.stop()
            ray.shutdown()
            found = [(row["path"], len(row["scores"])) for row, _ in read_rows(output, ("path", "scores"))]
            same = len(found) == len(expected) and dict(found) == expected
            name = f"Ray, workers: {count}{'' if same else ' (OTHER RESULTS)'}"
            rows.append([name, seconds, args.images / seconds, plain / seconds, memory(os.getpid()), *sizes])
    print(f"{args.images} images, {os.cpu_count()} cores")
    print(tabulate(rows, headers=HEADERS, floatfmt=".1f"))


if __name__ == "__main__":
    sys.exit(run_script(main, parse()))
