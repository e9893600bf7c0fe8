"""Frames of a video file in and out, with OpenCV."""

import math
import os
from collections.abc import Iterable, Iterator

import cv2
import numpy as np

from ..errors import ImageError

__all__ = ["read_video", "write_video"]

# Which encoders OpenCV has differs from build to build: the first that works is taken.
CODECS = (("mp4v", ".mp4"), ("avc1", ".mp4"), ("MJPG", ".avi"))


def read_video(path: str) -> tuple[Iterator[np.ndarray], int, float]:
    """
    A video's frames ((H, W, 3) uint8 RGB, read as they are asked for), their number (0: unknown) and frames per second.

    Raises:
        ImageError: no frame can be read; the message names the file.
    """
    capture = cv2.VideoCapture(path)
    opened, first = capture.read()
    if not opened:
        raise ImageError(f"{path}: no frame of this video can be read")
    fps = capture.get(cv2.CAP_PROP_FPS)
    count = capture.get(cv2.CAP_PROP_FRAME_COUNT)

    def frames():
        more, frame = True, first
        while more:
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            more, frame = capture.read()
        capture.release()

    fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else 25.0
    return frames(), int(count) if math.isfinite(count) and count > 0 else 0, fps


def _readable(path: str) -> bool:
    return os.path.isfile(path) and os.path.getsize(path) > 0 and cv2.VideoCapture(path).read()[0]


def _working_codec(stem: str, fps: float, size: tuple[int, int]) -> tuple[str, str]:
    """The first codec whose test clip of this size (width, height) can be read back, and its suffix."""
    for codec, suffix in CODECS:
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


def write_video(stem: str, frames_rgb: Iterable[np.ndarray], fps: float) -> str:
    """
    Write the frames as ``stem.mp4``, or ``stem.avi`` where OpenCV has no MPEG-4 encoder.

    Args:
        stem: path without suffix.
        frames_rgb: at least one (H, W, 3) uint8 RGB frame, all of one size.

    Returns:
        The path written.

    Raises:
        ImageError: no frame, no encoder works for this size, or the written file cannot be read back.
    """
    frames = iter(frames_rgb)
    frame = next(frames, None)
    if frame is None:
        raise ImageError(f"{stem}: a video needs at least one frame")
    size = (frame.shape[1], frame.shape[0])
    codec, suffix = _working_codec(stem, fps, size)
    temporary = f"{stem}.part{suffix}"
    writer = cv2.VideoWriter(temporary, cv2.VideoWriter_fourcc(*codec), fps, size)
    try:
        while frame is not None:
            writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
            frame = next(frames, None)
        writer.release()
        if not _readable(temporary):
            raise ImageError(f"{stem}{suffix}: the video could not be written (is there space left?)")
        os.replace(temporary, stem + suffix)
    finally:
        writer.release()
        if os.path.exists(temporary):
            os.remove(temporary)
    return stem + suffix
