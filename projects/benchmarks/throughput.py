#!/usr/bin/env python3
"""Time `instseg predict` on photos: one after the other, and several at a time with --batch, in turns."""

import argparse
import itertools
import logging
import os
import statistics
import sys
import tempfile
import time

import cv2
from tabulate import tabulate

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from instseg_d2.apps.inputs import find_inputs
from instseg_d2.apps.predict import run_demo
from instseg_d2.apps.results import named_results
from instseg_d2.commands import predict
from instseg_d2.console import run_script
from instseg_d2.data.images import read_image
from instseg_d2.files import ListFile, write_bytes
from instseg_d2.inference.cpu import tune_cpu
from instseg_d2.visualization import draw_instances

HEADERS = ["", "ms an image", "images a second", "speed"]


def one_by_one(predictor, files, output: str, score_threshold: float) -> None:
    """What `instseg predict` does, with nothing at the same time."""
    results = ListFile(os.path.join(output, "results.json"))
    for number, file in enumerate(files, 1):
        image = read_image(file, "RGB")
        record = predictor.preprocess(image, "RGB")
        (instances,) = predictor.predict([record], score_threshold, masks="run_lengths")
        results.add(named_results(instances, predictor, number, file))
        drawn = draw_instances(image, instances, predictor.class_names)
        _, data = cv2.imencode(".jpg", drawn[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        write_bytes(os.path.join(output, f"{number}.jpg"), data.tobytes())
    results.finish()


def throughput_rows(predictors: dict, files, score_threshold: float, repeats: int) -> list[list]:
    """
    Rows of `HEADERS`, medians of ``repeats`` turns after one that does not count.

    Args:
        predictors: number of images at a time -> predictor; 1 is also timed one by one.
    """
    seconds: dict[str, list[float]] = {}
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        for turn, (batch, predictor) in itertools.product(
            range(repeats + 1), [(0, predictors[1]), *predictors.items()]
        ):
            with tempfile.TemporaryDirectory() as output:
                start = time.perf_counter()
                if batch:
                    run_demo(predictor, files, output, score_threshold=score_threshold, batch=batch)
                else:
                    one_by_one(predictor, files, output, score_threshold)
                if turn:
                    name = f"--batch {batch}" if batch else "one by one"
                    seconds.setdefault(name, []).append((time.perf_counter() - start) / len(files))
    finally:
        logging.disable(level)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = medians["one by one"]
    return [[name, 1000 * value, 1 / value, first / value] for name, value in medians.items()]


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__)
    predict.add_model(parser)
    parser.add_argument("--input", nargs="+", required=True, help="photos: files, folders or globs")
    parser.add_argument("--batch", type=int, nargs="+", default=[2], help="numbers of images at a time")
    parser.add_argument("--score-threshold", type=float, default=0.5)
    parser.add_argument("--max-images", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides KEY VALUE ...")
    return parser.parse_args(arguments)


def main(args) -> None:
    tune_cpu()
    files = find_inputs(args.input)[: args.max_images]
    predictors = {batch: predict.open_predictor(args, batch) for batch in dict.fromkeys((1, *args.batch))}
    rows = throughput_rows(predictors, files, args.score_threshold, args.repeats)
    print(f"{len(files)} images, {os.cpu_count()} cores")
    print(tabulate(rows, headers=HEADERS, floatfmt=".2f"))


if __name__ == "__main__":
    sys.exit(run_script(main, parse()))
