"""
Prediction on a cluster with Ray Data. The inputs are shared out in parts; each is predicted by an actor and written by
it, so that the memory of the driver does not grow, and a part that is repeated after a loss replaces itself.
"""

import glob
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from typing import Optional

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from tqdm import tqdm

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what matters is an exception as well
import ray

from ..errors import ConfigError, DatasetError
from ..inference.cpu import tune_cpu
from .batch_predictor import BatchPredictor
from .inputs import find_inputs
from .parquet import Parts, table

__all__ = ["find_parts", "predict_on_ray"]

logger = logging.getLogger(__name__)

PART_SIZE = 200  # images
ROWS = 64  # of a part in memory at a time, with their content
STORE = 200 << 20  # bytes of Ray's object store on a machine of its own; only names and counts go through it


def _parquet_files(pattern: str) -> list[str]:
    """The Parquet files of a path, a glob or an address; [] if it is something else."""
    if "://" in pattern:
        system, root = fs.FileSystem.from_uri(pattern)
        scheme = pattern.split("://")[0]
        info = system.get_file_info(root)
        if info.type == fs.FileType.Directory:
            entries = system.get_file_info(fs.FileSelector(root, recursive=True))
            return sorted(f"{scheme}://{entry.path}" for entry in entries if entry.path.endswith(".parquet"))
        return [pattern] if pattern.endswith(".parquet") else []
    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
        path = os.path.join(path, "*.parquet")
    return sorted(os.path.abspath(name) for name in glob.glob(path, recursive=True) if name.endswith(".parquet"))


def _open(file: str) -> pq.ParquetFile:
    system, name = fs.FileSystem.from_uri(file) if "://" in file else (fs.LocalFileSystem(), file)
    return pq.ParquetFile(system.open_input_file(name))


def _paths(inputs: Sequence[str]) -> list[str]:
    """The images of paths, folders, globs, data sets, and of lists: text files with one path or address a line."""
    found = []
    for pattern in inputs:
        if pattern.endswith(".txt"):
            if not os.path.isfile(os.path.expanduser(pattern)):
                raise FileNotFoundError(f"{pattern}: there is no such list")
            with open(os.path.expanduser(pattern), encoding="utf-8") as lines:
                found += filter(None, map(str.strip, lines))
        elif "://" in pattern:
            found.append(pattern)
        else:
            found += map(os.path.abspath, find_inputs(pattern))
    return list(dict.fromkeys(found))


def _named(part: dict) -> dict:
    return {**part, "name": hashlib.sha1(json.dumps(part).encode()).hexdigest()[:16]}


def find_parts(inputs: Sequence[str], column: Optional[str], part_size: int, done: Parts) -> tuple[list[dict], int]:
    """
    The parts that are not done, and their number of images: {"name", "paths"}, or {"name", "file", "row_group",
    "column"} for a row group of a Parquet file.

    Args:
        inputs: paths, folders, globs, data sets, addresses, lists (.txt); or Parquet files or folders of them.
        column: of the Parquet files, with contents of image files, or their paths or addresses.

    Raises:
        FileNotFoundError, DatasetError, ConfigError: there is no such input, or no such column.
    """
    files = [_parquet_files(pattern) for pattern in inputs]
    if not any(files):
        finished = set(done.paths())
        paths = [path for path in _paths(inputs) if path not in finished]
        return [_named({"paths": paths[i : i + part_size]}) for i in range(0, len(paths), part_size)], len(paths)
    if not all(files):
        raise DatasetError(f"{inputs[files.index([])]}: no Parquet file; images and Parquet files are given apart.")
    if column is None:
        raise ConfigError("which column of the Parquet files holds the images, or their addresses? Say --column NAME.")
    finished, parts, count = set(done.names()), [], 0
    for file in dict.fromkeys(file for group in files for file in group):
        with _open(file) as opened:
            if column not in opened.schema_arrow.names:
                names = ", ".join(opened.schema_arrow.names)
                raise ConfigError(f"{file} has no column {column}; it has {names}.")
            for group in range(opened.num_row_groups):
                part = _named({"file": file, "row_group": group, "column": column})
                if part["name"] not in finished:
                    parts.append(part)
                    count += opened.metadata.row_group(group).num_rows
    return parts, count


def _batches(part: dict) -> Iterator[dict]:
    """The columns of a part, `ROWS` images at a time."""
    if "paths" in part:
        for start in range(0, len(part["paths"]), ROWS):
            yield {"path": part["paths"][start : start + ROWS]}
        return
    with _open(part["file"]) as file:
        for batch in file.iter_batches(batch_size=ROWS, row_groups=[part["row_group"]]):
            columns = dict(zip(batch.schema.names, (values.to_pylist() for values in batch.columns)))
            kind = batch.schema.field(part["column"]).type
            binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
            images = columns.pop(part["column"])
            yield {**columns, "bytes" if binary else "path": images}


class _PartPredictor:
    """The actor: predicts parts and writes them."""

    def __init__(self, predictor: BatchPredictor, output: str):
        tune_cpu()
        self.predictor, self.parts = predictor, Parts(output)
        model = predictor.predictor
        self.information = {
            "class_names": model.class_names,
            "category_ids": {str(index): value for index, value in model.category_ids.items()},
            "score_threshold": predictor.score_threshold,
        }

    def __call__(self, row: dict) -> dict:
        part = json.loads(row["part"])
        counts = {"images": 0, "objects": 0, "failed": 0}

        def tables() -> Iterator[pa.Table]:
            for batch in _batches(part):
                found = self.predictor(batch)
                counts["images"] += len(found["error"])
                counts["objects"] += sum(map(len, found["scores"]))
                counts["failed"] += sum(error is not None for error in found["error"])
                yield table(found, self.information)

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
        output: folder or address that all machines can write to.
        address: of a Ray cluster ("auto": the one of this machine); None: start one here.
        resume: leave out what is in the folder already.

    Returns:
        True if at least one image was processed, now or before.

    Raises:
        ConfigError, DatasetError, FileNotFoundError: an argument is invalid.
    """
    if part_size < 1:
        raise ConfigError(f"--part-size must be at least 1; got {part_size}")
    output = output if "://" in output else os.path.abspath(os.path.expanduser(output))
    parts = Parts(output)
    earlier = parts.names()
    if earlier and not resume:
        raise ConfigError(f"{output} has the results of an earlier run: add --resume, or choose another folder.")
    parts.remove_unfinished()
    tasks, total = find_parts(inputs, column, part_size, parts)
    if not tasks:
        logger.info("Everything is done already: %d parts in %s.", len(earlier), output)
        return bool(earlier)
    predictor.predictor  # noqa: B018 (a fault of the model is reported here and once)
    _start(address)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    rows = [{"part": json.dumps(part)} for part in tasks]
    done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _PartPredictor,
        fn_constructor_args=(predictor, output),
        num_cpus=1,
        num_gpus=1 if gpus else None,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=max(1, min(gpus or cpus, len(rows)))),
    )
    counts = {"images": 0, "objects": 0, "failed": 0}
    with tqdm(total=total, unit="image", disable=None) as progress:
        for row in done.iter_rows():
            progress.update(row["images"])
            counts = {name: value + row[name] for name, value in counts.items()}
    logger.info(
        "%d images, %d of them failed, %d objects: %s", *(counts[x] for x in ("images", "failed", "objects")), output
    )
    return bool(earlier) or counts["images"] > counts["failed"]
