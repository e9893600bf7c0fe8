"""
Predictions in Parquet: a folder of parts, here or in a bucket, written whole or not at all.

A row is an image. Its columns are those of the input except the image's content, and:

==========  ==================  ==========================================================================
path        string              as given
height      int32               of the image, pixels; 0 if it failed
width       int32
boxes       list<list<float>>   x1, y1, x2, y2 in pixels, for each object
scores      list<float>
labels      list<int32>         index into class_names
masks       list<binary>        counts of COCO's compressed run lengths; empty if the model has no masks
error       string              why the image failed; null if it did not
==========  ==================  ==========================================================================

The schema's metadata have one entry, ``instseg_d2``: JSON with class_names, category_ids (index -> id in the data set)
and score_threshold.
"""

import contextlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping
from typing import Optional

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from ..errors import DatasetError
from ..files import ListFile
from ..visualization.overlay import class_name
from .results import shown_name

__all__ = ["Parts", "coco_entries", "place", "read_rows", "table", "write_coco"]

METADATA = b"instseg_d2"
TYPES = {
    "path": pa.string(),
    "height": pa.int32(),
    "width": pa.int32(),
    "boxes": pa.list_(pa.list_(pa.float32())),
    "scores": pa.list_(pa.float32()),
    "labels": pa.list_(pa.int32()),
    "masks": pa.list_(pa.binary()),
    "error": pa.string(),
}
_PART, _UNFINISHED, _SUFFIX = "part-", ".unfinished-", ".parquet"


def place(path: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or address, and the path there."""
    return fs.FileSystem.from_uri(path) if "://" in path else (fs.LocalFileSystem(), path)


def table(columns: Mapping, information: Mapping, others: Optional[pa.RecordBatch] = None) -> pa.Table:
    """
    The rows of `BatchPredictor` as a table.

    Args:
        columns: those of `TYPES`, or some of them.
        information: for the metadata.
        others: further columns, which are kept as they are.
    """
    arrays = {} if others is None else dict(zip(others.schema.names, others.columns))
    for name, values in columns.items():
        values = [shown_name(value) if name == "path" and value else value for value in values]
        arrays[name] = pa.array(values, TYPES[name])
    return pa.table(arrays).replace_schema_metadata({METADATA: json.dumps(dict(information)).encode()})


class Parts:
    """
    The parts of an output folder.

    Args:
        folder: a local folder, or an address that PyArrow knows (s3://bucket/folder, gs://...).

    Raises:
        DatasetError: PyArrow does not know such an address.
    """

    def __init__(self, folder: str):
        self.folder = folder
        try:
            self.system, self.root = place(folder)
        except (ValueError, OSError) as error:
            raise DatasetError(f"{folder}: {error}") from error

    def _files(self) -> list[str]:
        found = self.system.get_file_info(fs.FileSelector(self.root, allow_not_found=True))
        return sorted(entry.base_name for entry in found if entry.type == fs.FileType.File)

    def names(self) -> list[str]:
        """The names of the parts, without suffix."""
        return [name[len(_PART) : -len(_SUFFIX)] for name in self._files() if name.startswith(_PART)]

    def remove_unfinished(self) -> None:
        """Remove what killed processes left. No process may be writing."""
        for name in self._files():
            if name.startswith(_UNFINISHED):
                with contextlib.suppress(FileNotFoundError):  # a lost machine's, which still ended its part
                    self.system.delete_file(f"{self.root}/{name}")

    def write(self, name: str, tables: Iterable[pa.Table]) -> None:
        """Write a part of at least one table; it replaces one of the same name."""
        self.system.create_dir(self.root, recursive=True)
        temporary = f"{self.root}/{_UNFINISHED}{name}-{uuid.uuid4().hex[:8]}{_SUFFIX}"
        try:
            with contextlib.ExitStack() as stack:
                writer = None
                for part in tables:
                    if writer is None:
                        file = stack.enter_context(self.system.open_output_stream(temporary))
                        writer = stack.enter_context(pq.ParquetWriter(file, part.schema))
                    writer.write_table(part)
            self.system.move(temporary, f"{self.root}/{_PART}{name}{_SUFFIX}")
        except BaseException:
            with contextlib.suppress(OSError):
                self.system.delete_file(temporary)
            raise

    def open(self, name: str) -> pq.ParquetFile:
        return pq.ParquetFile(self.system.open_input_file(f"{self.root}/{_PART}{name}{_SUFFIX}"))

    def paths(self) -> Iterator[str]:
        """The path of each row."""
        for name in self.names():
            with self.open(name) as part:
                if "path" in part.schema_arrow.names:
                    yield from part.read(columns=["path"]).column("path").to_pylist()


def read_rows(folder: str, columns: Iterable[str] = tuple(TYPES)) -> Iterator[tuple[dict, dict]]:
    """
    The rows of all parts, a few in memory at a time: (row, information).

    Raises:
        DatasetError: there are none, or another program wrote them.
    """
    parts = Parts(folder)
    names = parts.names()
    if not names:
        raise DatasetError(f"{folder}: no predictions in this folder, which `instseg predict --engine ray` writes.")
    for name in names:
        with parts.open(name) as part:
            metadata = part.schema_arrow.metadata or {}
            if METADATA not in metadata:
                raise DatasetError(f"{folder}/{_PART}{name}{_SUFFIX} was not written by instseg predict.")
            information = json.loads(metadata[METADATA])
            wanted = [column for column in columns if column in part.schema_arrow.names]
            for batch in part.iter_batches(batch_size=256, columns=wanted):
                for row in batch.to_pylist():
                    yield row, information


def coco_entries(row: Mapping, information: Mapping, image_id) -> list[dict]:
    """The objects of a row in COCO's results format, with ``category_name`` and, if it is known, ``file_name``."""
    size, path = [row["height"], row["width"]], row.get("path")
    boxes = np.array(row["boxes"], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    entries = []
    for index, (box, score, label) in enumerate(zip(boxes.tolist(), row["scores"], row["labels"])):
        entry = {
            "image_id": image_id,
            "category_id": information["category_ids"].get(str(label), label),
            "bbox": box,
            "score": score,
            "category_name": class_name(information["class_names"], label),
        }
        if row["masks"]:
            entry["segmentation"] = {"size": size, "counts": row["masks"][index].decode()}
        entries.append({**entry, **({} if path is None else {"file_name": path})})
    return entries


def write_coco(folder: str, path: str) -> None:
    """
    Write the predictions of a folder as COCO results. ``image_id`` is the column of this name, if there is one, else
    the row's number, from 1 in the order of the parts.
    """
    results = ListFile(path)
    for number, (row, information) in enumerate(read_rows(folder, (*TYPES, "image_id")), 1):
        results.add(coco_entries(row, information, row.get("image_id", number)))
    results.finish()
