"""A predictor for programs that hand out the work: Ray Data, Spark, a loop over batches."""

import json
import os
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Optional, Union

import numpy as np

from ..data.images import read_image
from ..errors import ConfigError, ImageError
from ..export import ExportedPredictor
from ..inference.image_predictor import ImagePredictor, to_rgb
from ..inference.predictor import Predictor
from ..inference.tiles import check_tiles, in_tiles
from .pipeline import FAILURES, Item, Pipeline

__all__ = ["COLUMNS", "SOURCES", "BatchPredictor"]

SOURCES = ("bytes", "image", "path")  # columns that hold the images; the first one counts
COLUMNS = ("height", "width", "boxes", "scores", "labels", "masks", "error")
TIMEOUT = 60  # seconds, for an address on the web
_EXPORTED = (".onnx", ".xml", ".pt2")


def _content(path: str) -> Union[str, bytes]:
    """A local path, or the bytes at an address: http(s)://, or s3://, gs:// and whatever else PyArrow reads."""
    if "://" not in path:
        return os.path.expanduser(path)
    if path.startswith(("http://", "https://")):
        with urllib.request.urlopen(path, timeout=TIMEOUT) as response:
            return response.read()
    from pyarrow import fs

    system, name = fs.FileSystem.from_uri(path)
    with system.open_input_file(name) as file:
        return file.read()


def _pixels(source: str, image, value_range) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a value in a column of `SOURCES`."""
    if image is None:
        raise ImageError("there is no image in this row.")
    if source == "image":
        return to_rgb(np.asarray(image), "RGB", value_range)
    return read_image(_content(str(image)) if source == "path" else bytes(image), "RGB", value_range=value_range)


class BatchPredictor:
    """
    Maps a dict of columns to a dict of columns; rows are images. A copy that is pickled carries no model: each process
    loads its own at the first call, with the threads (``OMP_NUM_THREADS``) and the GPU that it may use.

    Args:
        path: checkpoint, or exported file (.onnx, .xml, .pt2).
        batch_size: images at a time, see `Pipeline`.
        score_threshold: detections that score lower are dropped.
        config_file, opts: see `Predictor.from_checkpoint`; for checkpoints.
        trust: see `ExportedPredictor`.
        tile, overlap: see `in_tiles`.

    Raises:
        ConfigError: the batch size, the threshold, a tile or the overlap is out of range.
    """

    def __init__(
        self,
        path,
        *,
        batch_size: int = 1,
        score_threshold: float = 0.5,
        config_file: str = "",
        opts: Sequence = (),
        trust: bool = False,
        tile: Optional[int] = None,
        overlap: Optional[float] = None,
    ):
        if batch_size < 1:
            raise ConfigError(f"the number of images at a time must be at least 1; got {batch_size}")
        if not 0 <= score_threshold <= 1:
            raise ConfigError(f"the score threshold must be between 0 and 1; got {score_threshold}")
        check_tiles(tile or None, overlap)
        self.tile, self.overlap = tile, overlap
        self.path, self.batch_size, self.score_threshold = os.fspath(path), batch_size, score_threshold
        self.config_file, self.opts, self.trust = config_file, tuple(opts), trust
        self._predictor: Optional[ImagePredictor] = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_predictor": None}

    @property
    def predictor(self) -> ImagePredictor:
        """
        The model of this process.

        Raises:
            ConfigError, CheckpointError, FileNotFoundError: it cannot be loaded.
        """
        if self._predictor is None:
            if self.path.lower().endswith(_EXPORTED):
                if self.config_file or self.opts:
                    raise ConfigError(f"{self.path} is an exported model, which takes no config")
                predictor = ExportedPredictor(self.path, self.trust, self.batch_size)
            else:
                predictor = Predictor.from_checkpoint(self.path, self.config_file, self.opts)
            self._predictor = in_tiles(predictor, self.tile, self.overlap, self.batch_size)
        return self._predictor

    def __call__(self, batch: Union[Mapping, np.ndarray]) -> dict[str, np.ndarray]:
        """
        Detect in the images of a batch of N rows.

        Args:
            batch: {column: N values} with the images in "bytes" (contents of files), else "image" (arrays (H, W, 3)
                uint8 RGB, or as `to_rgb` takes them), else "path" (local, or an address); or an array of one of these
                alone. Other columns are returned as they are.

        Returns:
            the other columns and "path", and `COLUMNS`, arrays of N: height and width in pixels; boxes, a list of
            [x1, y1, x2, y2] for each image; scores; labels, contiguous class indices; masks, the counts of COCO's
            compressed run lengths as bytes (empty if the model has no masks); error, why an image failed, or None.
        """
        columns = dict(batch) if isinstance(batch, Mapping) else {_source(batch): batch}
        source = next((name for name in SOURCES if name in columns), None)
        if source is None:
            raise ValueError(f"a batch needs one of the columns {', '.join(SOURCES)}; got {', '.join(columns)}")
        images = columns[source] if source == "path" else columns.pop(source)

        def read(item: Item) -> None:
            image = images[item.task]
            try:
                pixels = _pixels(source, image, self.predictor.value_range)
            except FAILURES:
                raise
            except Exception as error:  # addresses and files of any kind raise all kinds
                raise ImageError(f"{image if source == 'path' else 'the image'} cannot be read: {error!r}") from error
            item.record = self.predictor.preprocess(pixels, "RGB")

        pipeline = Pipeline(self.predictor, self.batch_size, self.score_threshold)
        rows = [_row(item) for item in pipeline.run(range(len(images)), read, _finish)]
        for index, name in enumerate(COLUMNS):
            columns[name] = np.empty(len(rows), dtype=np.int32 if name in ("height", "width") else object)
            for number, row in enumerate(rows):
                columns[name][number] = row[index]
        return columns

    def json(self, batch: Union[Mapping, np.ndarray]) -> np.ndarray:
        """
        The same as one text of JSON for each image, with the keys `COLUMNS`, for engines whose columns hold one value
        or arrays of one length: Spark's ``predict_batch_udf(lambda: predictor.json, return_type=StringType(), ...)``.
        """
        found = self(batch)
        rows = np.empty(len(found["error"]), dtype=object)
        for number in range(len(rows)):
            row = {name: found[name][number] for name in COLUMNS}
            row.update({name: int(row[name]) for name in ("height", "width")})
            rows[number] = json.dumps({**row, "masks": [counts.decode() for counts in row["masks"]]})
        return rows


def _source(images: np.ndarray) -> str:
    """What an array holds that comes without a name."""
    first = images[0] if len(images) else b""
    if isinstance(first, str):
        return "path"
    return "bytes" if isinstance(first, (bytes, bytearray, memoryview)) else "image"


def _finish(item: Item) -> None:
    found = item.output["instances"]
    masks = [code["counts"] for code in found.pred_masks.codes] if found.has("pred_masks") else []
    boxes, scores, labels = found.pred_boxes.tensor.tolist(), found.scores.tolist(), found.pred_classes.tolist()
    item.result = (*found.image_size, boxes, scores, labels, masks, None)
    item.output = None


def _row(item: Item) -> tuple:
    if item.error is None:
        return item.result
    return 0, 0, [], [], [], [], str(item.error) or "out of memory"
