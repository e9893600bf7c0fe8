"""
Prediction on a cluster with Ray Data. The inputs are shared out in parts; each is predicted by an actor and written by
it, so that the memory of the driver does not grow, and a part that is repeated after a loss replaces itself.
"""

import json
import logging
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Optional

import pyarrow as pa
from tqdm import tqdm

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is an exception as well
import ray

from ..errors import ConfigError, DatasetError
from ..inference.cpu import tune_cpu
from .batch_predictor import BatchPredictor
from .parquet import Parts, table
from .parts import batches, find_parts, named

__all__ = ["predict_on_ray"]

logger = logging.getLogger(__name__)

PART_SIZE = 200  # images
RETRIES = 3  # of a part whose worker was lost
COUNTED = ("images", "failed", "objects")
REASONS = "its memory does not suffice, or the image brings the program down"
STORE = 200 << 20  # bytes of Ray's object store on a machine of its own; only names and counts go through it


def information(predictor: BatchPredictor) -> dict:
    """What a part says about the model."""
    model = predictor.predictor
    return {
        "class_names": model.class_names,
        "category_ids": {str(index): value for index, value in model.category_ids.items()},
        "score_threshold": predictor.score_threshold,
    }


class _PartPredictor:
    """The actor: predicts parts and writes them."""

    def __init__(self, predictor: BatchPredictor, output: str):
        tune_cpu()
        self.predictor, self.parts, self.information = predictor, Parts(output), information(predictor)

    def __call__(self, row: dict) -> dict:
        part = json.loads(row["part"])
        counts = dict.fromkeys(COUNTED, 0)

        def tables() -> Iterator[pa.Table]:
            for images, others in batches(part):
                found = self.predictor(images)
                counts["images"] += len(found["error"])
                counts["objects"] += sum(map(len, found["scores"]))
                counts["failed"] += sum(error is not None for error in found["error"])
                yield table(found, self.information, others)

        self.parts.write(part["name"], tables())
        return counts


def _start(address: Optional[str]) -> None:
    """Connect to a cluster, or start Ray in this machine."""
    if ray.is_initialized():
        return
    options = {"address": address} if address else {"object_store_memory": STORE, "include_dashboard": False}
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(f"Ray does not start at {address or 'this machine'}: {error}") from error


def predict_on_ray(
    predictor: BatchPredictor,
    inputs: Sequence[str],
    output: str,
    *,
    address: Optional[str] = None,
    column: Optional[str] = None,
    part_size: int = PART_SIZE,
    resume: bool = False,
) -> bool:
    """
    Detect on every input and write the parts of `apps.parquet` to a folder.

    A machine of the cluster that is lost costs the parts in work there, which others repeat; each image is in the
    output exactly once.

    Args:
        predictor: what each actor runs, on one core, or on one GPU if the cluster has some.
        inputs, column, part_size: see `find_parts`.
        output: absolute path of a folder, or address, that all machines can write to.
        address: of a Ray cluster ("auto": the one of this machine); None: start one here.
        resume: leave out what is in the folder already.

    Returns:
        True if at least one image was processed, now or before.

    Raises:
        ConfigError, DatasetError, FileNotFoundError: an argument is invalid.
    """
    if part_size < 1:
        raise ConfigError(f"--part-size must be at least 1; got {part_size}")
    parts = Parts(output)
    earlier = parts.names()
    if earlier and not resume:
        raise ConfigError(f"{output} has the results of an earlier run: add --resume, or choose another folder.")
    parts.remove_unfinished()
    tasks, total = find_parts(inputs, column, part_size, parts)
    if not tasks:
        logger.info("Everything is done already: %d parts in %s.", len(earlier), output)
        return bool(earlier)
    about = information(predictor)  # also reports a fault of the model once
    _start(address)
    counts = Counter()
    with tqdm(total=total, unit="image", disable=None) as progress:
        lost = _run(predictor, tasks, parts, counts, progress)
        if lost:
            lost = _run(predictor, _single(lost, output), parts, counts, progress)
        for part in lost:
            parts.write(part["name"], [_failed(part["paths"], about)])
            counts.update(images=1, failed=1)
    parts.remove_unfinished()  # of lost machines
    logger.info("%d images, %d of them failed, %d objects: %s", *(counts[x] for x in COUNTED), output)
    return bool(earlier) or counts["images"] > counts["failed"]


def _run(predictor: BatchPredictor, tasks: list[dict], parts: Parts, counts: Counter, progress: tqdm) -> list[dict]:
    """Predict the parts; returns those whose workers were lost again and again."""
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    # More actors are started while all have work. By default, these would need several parts each.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 1.0
    context.max_errored_blocks = -1  # what is missing in the end is repeated one by one
    resources = ray.cluster_resources()
    rows = [{"part": json.dumps(part)} for part in tasks]
    # Ray 2.60 deprecates remote arguments without a name of its own, but has no other one for retries.
    warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _PartPredictor,
        fn_constructor_args=(predictor, parts.folder),
        num_cpus=1,
        num_gpus=1 if resources.get("GPU") else None,
        # As many actors as there is room for. No part waits at an actor, where it would fail with the one before it.
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=len(rows), max_tasks_in_flight_per_actor=1),
        max_task_retries=RETRIES,
    )
    for row in done.iter_rows():
        progress.update(row["images"])
        counts.update(row)
    written = set(parts.names())
    return [part for part in tasks if part["name"] not in written]


def _single(lost: list[dict], output: str) -> list[dict]:
    """
    A part for each image of the parts that were lost.

    Raises:
        DatasetError: a row group of a Parquet file cannot be divided.
    """
    groups = [part for part in lost if "file" in part]
    if groups:
        raise DatasetError(
            f"row group {groups[0]['row_group']} of {groups[0]['file']} fails again and again ({len(groups)} do): "
            f"{REASONS}. The rest is in {output}."
        )
    images = [path for part in lost for path in part["paths"]]
    logger.warning("%d images are repeated one by one: their workers failed again and again.", len(images))
    return [named({"paths": [path]}) for path in images]


def _failed(paths: Sequence[str], about: dict) -> pa.Table:
    """The rows of images that no worker survives."""
    number = len(paths)
    empty = {"height": [0] * number, "width": [0] * number, "boxes": [[]] * number, "scores": [[]] * number}
    empty.update(
        path=paths, labels=[[]] * number, masks=[[]] * number, error=[f"the worker failed: {REASONS}"] * number
    )
    return table(empty, about)
