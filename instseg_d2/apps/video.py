"""Reads and writes the frames of videos with OpenCV; also reads cameras and addresses."""

import contextlib
import itertools
import logging
import math
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Optional
from urllib.parse import urlsplit

import cv2
import numpy as np

from ..errors import ImageError
from .inputs import is_live

__all__ = ["BROWSER_CODECS", "Video", "source_name", "write_video"]

logger = logging.getLogger(__name__)

# OpenCV builds differ in their encoders: the first one that works is used.
CODECS = (("mp4v", ".mp4"), ("avc1", ".mp4"), ("MJPG", ".avi"))
BROWSER_CODECS = (("VP80", ".webm"), *CODECS)  # browsers play no "mp4v"
# A video ends after this many unreadable frames in a row: within the frame count of its header, and beyond it.
MAX_BROKEN, MAX_BROKEN_AT_END = 1000, 10
# A camera or address that breaks off is opened again after these pauses, in seconds; the pauses start anew once this
# many frames have come.
PAUSES, STEADY = (1, 2, 4), 100
TIMEOUT = 10  # seconds to wait for an address, and for each of its frames


@contextlib.contextmanager
def _plain_name(path: str) -> Iterator[str]:
    """Yield another name of the file for OpenCV, which crashes on names that are not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        with tempfile.TemporaryDirectory() as folder:
            link = os.path.join(folder, f"video{os.path.splitext(path)[1]}".encode("ascii", "ignore").decode())
            os.symlink(os.path.abspath(path), link)
            yield link
    else:
        yield path


def source_name(source: str) -> str:
    """The name of a video file, camera or address in the results; without passwords and queries."""
    if not is_live(source):
        return os.path.basename(source)
    address = urlsplit(source)
    return f"{address.hostname or ''}{address.path}" if address.scheme else f"camera {source}"


def _opened(source: str) -> cv2.VideoCapture:
    if not is_live(source):
        with _plain_name(source) as name:
            return cv2.VideoCapture(name)
    # OpenCV's own messages about what cannot be opened are many lines long.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    if source.isdigit():
        return cv2.VideoCapture(int(source))
    timeouts = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, 1000 * TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, 1000 * TIMEOUT]
    return cv2.VideoCapture(source, cv2.CAP_FFMPEG, timeouts)


class Video:
    """
    The frames of a video file, camera or address, to be iterated over once: (H, W, 3) uint8 RGB, or None for an
    unreadable frame.

    A camera, or an address without a number of frames, has no end. If it breaks off, it is opened again a few times.

    Args:
        source: path, number of a camera, or address; see `is_live`.
        every: only each n-th frame, from the first one.

    Attributes:
        count: number of frames in the header, which may be wrong; 0: unknown.
        fps: frames per second; 25 without a sensible value.
        read, broken: number of readable and unreadable frames so far; with ``every``, those between count as well.

    Raises:
        ImageError: no frame can be read.
    """

    def __init__(self, source: str, every: int = 1):
        self.read = self.broken = 0
        self._source, self._every = os.fspath(source), every
        self._capture = _opened(self._source)
        fps, count = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else 25.0
        self.count = int(count) if math.isfinite(count) and count > 0 else 0
        live = is_live(self._source)
        self._frames = self._read_live() if live and not self.count else self._read()
        self._begin = []  # up to the first readable frame
        for frame in self._frames:
            self._begin.append(frame)
            if frame is not None:
                return
        if live:
            raise ImageError(f"{source_name(self._source)}: no picture comes from there; check it with another program")
        raise ImageError(f"{self._source}: this video has no readable frame")

    def _read(self) -> Iterator[Optional[np.ndarray]]:
        in_a_row = 0
        while True:
            found, frame = self._capture.read()
            if found:
                self.broken += in_a_row
                yield from [None] * in_a_row
                in_a_row = 0
                self.read += 1
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                continue
            in_a_row += 1
            inside = self.read + self.broken + in_a_row < self.count
            if in_a_row >= (MAX_BROKEN if inside else MAX_BROKEN_AT_END):
                break
        self._capture.release()
        self.broken = max(self.broken, self.count - self.read)  # includes frames missing at the end

    def _read_live(self) -> Iterator[np.ndarray]:
        name, attempts, steady = source_name(self._source), 0, 0
        while True:
            found, frame = self._capture.read()
            if found:
                self.read += 1
                steady += 1
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
                continue
            self._capture.release()
            if self.read == 0:
                return
            if steady >= STEADY:
                attempts = 0
            if attempts == len(PAUSES):
                logger.warning("%s broke off and does not come back: the video ends here.", name)
                return
            logger.warning("%s broke off after frame %d: trying again in %d s.", name, self.read, PAUSES[attempts])
            time.sleep(PAUSES[attempts])
            attempts, steady = attempts + 1, 0
            self._capture = _opened(self._source)

    def __iter__(self) -> Iterator[Optional[np.ndarray]]:
        frames = itertools.chain(self._begin, self._frames)
        return itertools.islice(frames, 0, None, self._every)


def _readable(path: str) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) > 0 and cv2.VideoCapture(path).read()[0]


def _working_codec(stem: str, fps: float, size: tuple[int, int], codecs: Sequence) -> tuple[str, str]:
    """The first codec that can write and read back a clip of this size (width, height), and its suffix."""
    for codec, suffix in codecs:
        clip = f"{stem}.probe{suffix}"
        writer = cv2.VideoWriter(clip, cv2.VideoWriter_fourcc(*codec), fps, size)
        for _ in range(2):
            writer.write(np.zeros((size[1], size[0], 3), np.uint8))
        writer.release()
        works = _readable(clip)
        if os.path.exists(clip):
            os.remove(clip)
        if works:
            return codec, suffix
    raise ImageError(f"{stem}: this OpenCV cannot write videos of {size[0]} x {size[1]} pixels")


def write_video(stem, frames_rgb: Iterable[np.ndarray], fps: float, codecs: Sequence = CODECS) -> str:
    """
    Write the frames as ``stem.mp4``, or as ``stem.avi`` if OpenCV has no MPEG-4 encoder.

    Ctrl-C or an error in ``frames_rgb`` ends the video; the frames written so far are kept.

    Args:
        stem: path without suffix.
        frames_rgb: at least one (H, W, 3) uint8 RGB frame; all are resized to the first.
        codecs: (OpenCV's code, suffix), the preferred one first.

    Returns:
        The path written.

    Raises:
        ImageError: there is no frame, no encoder works for this size, or the written file cannot be read back.
    """
    folder, name = os.path.split(os.fspath(stem))
    with _plain_name(folder or ".") as plain:
        written = _write(os.path.join(plain, name), iter(frames_rgb), fps, codecs)
    return os.path.join(folder, os.path.basename(written))


def _write(stem: str, frames: Iterator[np.ndarray], fps: float, codecs: Sequence) -> str:
    frame = next(frames, None)
    if frame is None:
        raise ImageError(f"{stem}: a video needs at least one frame")
    size = (frame.shape[1], frame.shape[0])
    codec, suffix = _working_codec(stem, fps, size, codecs)
    temporary = f"{stem}.part{suffix}"
    writer = cv2.VideoWriter(temporary, cv2.VideoWriter_fourcc(*codec), fps, size)
    try:
        while frame is not None:
            frame = frame if frame.shape[1::-1] == size else cv2.resize(frame, size)  # other sizes would be dropped
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            frame = next(frames, None)
    except KeyboardInterrupt:
        logger.warning("Stopped; the video ends here.")
    finally:
        writer.release()
        whole = _readable(temporary)
        if whole:
            os.replace(temporary, stem + suffix)
        elif os.path.exists(temporary):
            os.remove(temporary)
    if not whole:
        raise ImageError(f"{stem}{suffix}: the video could not be written (is the disk full?)")
    return stem + suffix
