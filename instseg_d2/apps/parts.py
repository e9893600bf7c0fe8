"""Shares the inputs of a prediction on a cluster out in parts. Any machine can read a part."""

import glob
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from typing import Optional

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from ..errors import ConfigError, DatasetError
from .batch_predictor import COLUMNS
from .inputs import find_inputs, is_video
from .parquet import Parts, place
from .results import shown_name

__all__ = ["batches", "find_parts", "named"]

ROWS = 64  # images of a part in memory at a time, with their content
CONTENT = {"bytes", "path"}  # fields of a struct with an image, as Hugging Face's data sets have them


def _parquet_files(pattern: str) -> list[str]:
    """
    The Parquet files of a path, a glob or an address; [] if it is something else.

    Raises:
        DatasetError: nothing can be read there.
    """
    if pattern.startswith(("http://", "https://")):
        return []
    if "://" in pattern:
        try:
            system, root = place(pattern)
            if system.get_file_info(root).type != fs.FileType.Directory:
                return [pattern] if pattern.endswith(".parquet") else []
            entries = system.get_file_info(fs.FileSelector(root, recursive=True))
        except (ValueError, OSError) as error:
            raise DatasetError(f"{pattern}: {error}") from error
        scheme = pattern.split("://")[0]
        return sorted(f"{scheme}://{entry.path}" for entry in entries if entry.path.endswith(".parquet"))
    path = os.path.expanduser(pattern)
    if os.path.isdir(path):
        path = os.path.join(glob.escape(path), "*.parquet")
    found = [path] if os.path.isfile(path) else glob.glob(path, recursive=True)
    return sorted(os.path.abspath(name) for name in found if name.endswith(".parquet"))


def _paths(inputs: Sequence[str]) -> list[str]:
    """The images of paths, folders, globs, data sets, and of lists: text files with one path or address a line."""
    found = []
    for pattern in inputs:
        if pattern.endswith(".txt"):
            path = os.path.expanduser(pattern)
            if not os.path.isfile(path):
                raise FileNotFoundError(f"{pattern}: there is no such list")
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                lines = list(filter(None, map(str.strip, file)))
            if not lines:
                raise DatasetError(f"{pattern}: this list is empty")
            found += [line if "://" in line else os.path.abspath(os.path.expanduser(line)) for line in lines]
        elif "://" in pattern and not pattern.startswith("file://"):
            found.append(pattern)
        else:
            files = find_inputs(pattern.removeprefix("file://"))
            if is_video(files[0]):
                raise ConfigError(f"{files[0]} is a video; --engine ray works only on images")
            found += map(os.path.abspath, files)
    return list(dict.fromkeys(found))


def named(part: dict) -> dict:
    """The part with its name, which follows from its content."""
    return {**part, "name": hashlib.sha1(json.dumps(part).encode()).hexdigest()[:16]}


def _kind(schema: pa.Schema, column: str, file: str) -> str:
    """
    What a column holds: "bytes", "path", or "struct" of both.

    Raises:
        ConfigError: there is no such column, it holds no images, or others have the names of ours.
    """
    if column not in schema.names:
        raise ConfigError(f"{file} has no column {column}; it has {', '.join(schema.names)}.")
    kind = schema.field(column).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        found = "path"
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        found = "bytes"
    elif pa.types.is_struct(kind) and {kind.field(i).name for i in range(kind.num_fields)} >= CONTENT:
        found = "struct"
    else:
        raise ConfigError(
            f"{file}: the column {column} has {kind}; image files (binary) or addresses (string) are read."
        )
    ours = set(COLUMNS) if found == "bytes" else {*COLUMNS, "path"}
    clashes = [name for name in schema.names if name in ours and name != column]
    if clashes:
        raise ConfigError(
            f"{file}: the column {clashes[0]} would be overwritten by that of the predictions; rename it."
        )
    return found


def find_parts(inputs: Sequence[str], column: Optional[str], part_size: int, done: Parts) -> tuple[list[dict], int]:
    """
    The parts that are not done, and their number of images: {"name", "paths"}, or {"name", "file", "row_group",
    "column"} for a row group of a Parquet file.

    Args:
        inputs: paths, folders, globs, data sets, addresses, lists (.txt); or Parquet files or folders of them.
        column: of the Parquet files, with contents of image files, or their paths or addresses, or a struct of both.

    Raises:
        FileNotFoundError, DatasetError, ConfigError: there is no such input, or no such column.
    """
    files = [_parquet_files(pattern) for pattern in inputs]
    if not any(files):
        if column is not None:
            raise ConfigError(f"--column is that of Parquet files; {inputs[0]} is none.")
        finished = set(done.paths())
        paths = [path for path in _paths(inputs) if shown_name(path) not in finished]
        return [named({"paths": paths[i : i + part_size]}) for i in range(0, len(paths), part_size)], len(paths)
    if not all(files):
        raise DatasetError(f"{inputs[files.index([])]}: no Parquet file; images and Parquet files are given apart.")
    if column is None:
        raise ConfigError("which column of the Parquet files holds the images, or their addresses? Say --column NAME.")
    finished, parts, count = set(done.names()), [], 0
    for file in dict.fromkeys(file for group in files for file in group):
        with _open(file) as opened:
            _kind(opened.schema_arrow, column, file)
            for group in range(opened.num_row_groups):
                part = named({"file": file, "row_group": group, "column": column})
                if part["name"] not in finished:
                    parts.append(part)
                    count += opened.metadata.row_group(group).num_rows
    return parts, count


def _open(file: str) -> pq.ParquetFile:
    try:
        system, name = place(file)
        return pq.ParquetFile(system.open_input_file(name))
    except (ValueError, OSError) as error:  # pa.ArrowInvalid is a ValueError
        raise DatasetError(f"{file} cannot be read as Parquet ({error}).") from error


def batches(part: dict) -> Iterator[tuple[dict, Optional[pa.RecordBatch]]]:
    """The images of a part as columns of `BatchPredictor`, `ROWS` at a time, and the other columns."""
    if "paths" in part:
        for start in range(0, len(part["paths"]), ROWS):
            yield {"path": part["paths"][start : start + ROWS]}, None
        return
    with _open(part["file"]) as file:
        kind = _kind(file.schema_arrow, part["column"], part["file"])
        for batch in file.iter_batches(batch_size=ROWS, row_groups=[part["row_group"]]):
            values = batch.column(part["column"]).to_pylist()
            others = batch.drop_columns([part["column"]])
            if kind != "struct":
                yield {kind: values}, others
                continue
            columns = {name: [value and value[name] for value in values] for name in CONTENT}
            if not any(columns["bytes"]):
                del columns["bytes"]
            yield columns, others
