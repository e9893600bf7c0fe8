"""What a model found in the files of a visitor: kept, so that another threshold only draws again."""

import contextlib
import html
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Callable, Optional

import cv2
import numpy as np
import torch
from detectron2.structures import Instances

from ...data import read_image
from ...errors import ImageError, sentence
from ...files import write_bytes
from ...inference.image_predictor import ImagePredictor
from ...visualization.overlay import class_name, draw_instances, draw_panoptic
from ..inputs import is_video
from ..pipeline import failure
from ..results import named_results
from ..runs import write_jpeg
from ..video import BROWSER_CODECS, Video, write_video

__all__ = ["COLUMNS", "LOWEST", "MAX_FRAMES", "Item", "Session", "detect_files", "fitted", "told"]

LOWEST = 0.05  # detections that score lower are not kept
MAX_FRAMES = 300  # of a video
MAX_ROWS = 1000  # of the table
THUMBNAIL = 256  # pixels, longest side
COLUMNS = ["frame", "class", "score", "x", "y", "width", "height"]


def told(error: Exception, path: str, *folders: str) -> str:
    """
    Why a file cannot be used: a sentence that names it, without these folders (a visitor does not know the temporary
    ones). Errors that do not concern one file are raised, see `failure`.
    """
    text, name = sentence(failure(error)) or "out of memory", os.path.basename(path)
    for folder in folders:
        text = text.replace(f"{folder}{os.sep}", "")
    return text if name in text else f"{name}: {text}"


@dataclass
class Frame:
    """The detections of a photo or of a frame, those of the lowest score included."""

    number: int
    instances: Instances
    panoptic: Optional[tuple]
    results: list[dict]


@dataclass
class Item:
    """A photo or a video, and what was found in it."""

    name: str
    path: str
    frames: list[Frame]
    thumbnail: np.ndarray
    class_names: Optional[Sequence[str]]
    stuff_names: Optional[Sequence[str]]
    value_range: tuple = ()

    @property
    def video(self) -> bool:
        return is_video(self.path)

    def image(self) -> np.ndarray:
        """The photo (H, W, 3) RGB. Raises ImageError if the file is gone."""
        try:
            return read_image(self.path, "RGB", value_range=self.value_range)
        except ImageError as error:
            raise ImageError(told(error, self.path, os.path.dirname(self.path))) from error

    def results(self, threshold: float, classes: Sequence[str]) -> list[dict]:
        """COCO results that reach the threshold, of these classes (none given: of all)."""
        return [
            result
            for frame in self.frames
            for result in frame.results
            if result["score"] >= threshold and (not classes or result["category_name"] in classes)
        ]

    def rows(self, threshold: float, classes: Sequence[str]) -> list[list]:
        """The table, by COLUMNS."""
        first = self.frames[0].number if self.frames else 0
        rows = [
            [r["image_id"] - first + 1, r["category_name"], round(r["score"], 3), *(round(v, 1) for v in r["bbox"])]
            for r in self.results(threshold, classes)[:MAX_ROWS]
        ]
        return rows if self.video else [row[1:] for row in rows]

    def summary(self, threshold: float, classes: Sequence[str]) -> str:
        """A line of HTML: the name, and the objects by class."""
        counts = Counter(result["category_name"] for result in self.results(threshold, classes))
        total = sum(counts.values())
        parts = ", ".join(f"{count} {html.escape(name)}" for name, count in counts.most_common(8))
        what = f"{total} object{'s' * (total != 1)}{f': {parts}' if parts else ''}"
        if self.video:
            what = f"{len(self.frames)} frames, {what}"
        return f"<b>{html.escape(self.name)}</b> &nbsp; {what}"

    def draw_frame(self, image: np.ndarray, frame: Frame, threshold: float, classes: Sequence[str]) -> np.ndarray:
        """The image (H, W, 3) RGB with its objects."""
        kept = torch.tensor(
            [r["score"] >= threshold and (not classes or r["category_name"] in classes) for r in frame.results],
            dtype=torch.bool,
        )
        if frame.panoptic is None:
            return draw_instances(image, frame.instances[kept], self.class_names)
        ids, segments = frame.panoptic
        segments = [
            x for x in segments
            if not (x["isthing"] and classes) or class_name(self.class_names, x["category_id"]) in classes
        ]  # fmt: skip
        return draw_panoptic(image, ids, segments, self.class_names, self.stuff_names, score_threshold=threshold)

    def draw(self, threshold: float, classes: Sequence[str], folder: str) -> str:
        """Write the picture or video with its objects to a folder; returns its path."""
        stem = os.path.join(folder, os.path.splitext(self.name)[0][:100] or "picture")
        if self.video:
            frames = (image for image in Video(self.path) if image is not None)
            drawn = (self.draw_frame(i, frame, threshold, classes) for i, frame in zip(frames, self.frames))
            video = Video(self.path)
            return write_video(stem, drawn, video.fps, BROWSER_CODECS)
        path = f"{stem}.jpg"
        write_jpeg(path, self.draw_frame(self.image(), self.frames[0], threshold, classes))
        return path


@dataclass
class Session:
    """One visitor: the files, the model, and a folder below ``root`` for the downloads."""

    items: list[Item] = field(default_factory=list)
    model: str = ""
    root: Optional[str] = None
    folder: str = ""

    def write(self, index: int, threshold: float, classes: Sequence[str]) -> tuple[Optional[str], str, str]:
        """
        Write the picture of an item and ``results.json`` of all; earlier ones are removed.

        Returns:
            Their paths and ""; or None, the path of ``results.json``, and why there is no picture.
        """
        self.clear()
        self.folder = tempfile.mkdtemp(prefix="saved-", dir=self.root)
        results = os.path.join(self.folder, "results.json")
        entries = [json.dumps(r) for item in self.items for r in item.results(threshold, classes)]
        write_bytes(results, f"[{','.join(entries)}]\n".encode())
        item = self.items[index]
        try:
            return item.draw(threshold, classes, self.folder), results, ""
        except Exception as error:
            return None, results, told(error, item.path, os.path.dirname(item.path), self.folder)

    def clear(self) -> None:
        """Remove the files."""
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder = ""


def _frame(predictor: ImagePredictor, image: np.ndarray, number: int, name: str) -> Frame:
    output = predictor.outputs([predictor.preprocess(image, "RGB")], LOWEST, "run_lengths")[0]
    panoptic = output.get("panoptic_seg")
    if panoptic is not None:
        panoptic = np.asarray(panoptic[0]).astype(np.int16), panoptic[1]
    results = named_results(output["instances"], predictor, number, name)
    return Frame(number, output["instances"], panoptic, results)


def fitted(image: np.ndarray, side: int) -> np.ndarray:
    """The image (H, W, 3), made smaller if its longest side has more pixels than ``side``."""
    scale = side / max(image.shape[:2])
    size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image


def _detect_file(predictor: ImagePredictor, path: str, number: int, report: Callable) -> Item:
    """``number``: of the first frame in the results."""
    name = os.path.basename(path)
    frames, thumbnail = [], None
    if is_video(path):
        video = Video(path)
        total = min(video.count or MAX_FRAMES, MAX_FRAMES)
        for image in video:
            if image is not None:
                thumbnail = fitted(image, THUMBNAIL) if thumbnail is None else thumbnail
                report(len(frames) / total, f"{name}: frame {len(frames) + 1} of {total}")
                frames.append(_frame(predictor, image, number + len(frames), name))
                if len(frames) == MAX_FRAMES:
                    break
    else:
        image = read_image(path, "RGB", value_range=predictor.value_range)
        thumbnail = fitted(image, THUMBNAIL)
        frames.append(_frame(predictor, image, number, name))
    names = predictor.class_names, predictor.stuff_names
    return Item(name, path, frames, thumbnail, *names, predictor.value_range)


def detect_files(
    predictor: ImagePredictor, paths: Iterable[str], report: Callable[[float, str], None]
) -> tuple[list[Item], list[str]]:
    """
    Run the network on photos and videos.

    Args:
        report: called with the share that is done and a text.

    Returns:
        One item per readable file; one sentence per file that cannot be used.
    """
    items, faults, number = [], [], 1
    paths = list(paths)
    for index, path in enumerate(paths):
        report(index / len(paths), os.path.basename(path))

        def within(share: float, text: str, index: int = index) -> None:
            report((index + share) / len(paths), text)

        try:
            items.append(_detect_file(predictor, path, number, within))
        except Exception as error:
            faults.append(told(error, path, os.path.dirname(path)))
            continue
        number += len(items[-1].frames)
        with contextlib.suppress(Exception):
            torch.cuda.empty_cache()
    return items, faults
