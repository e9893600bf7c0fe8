"""Finds the input files of a command."""

import glob
import logging
import os
from collections import Counter
from collections.abc import Sequence
from typing import Union

from detectron2.data import DatasetCatalog

from ..data.images import HEIC_SUFFIXES, image_suffixes
from ..errors import DatasetError

__all__ = ["find_inputs", "is_live", "is_video"]

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov",
    ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".qt", ".rm", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
ADDRESSES = ("rtsp://", "rtsps://", "http://", "https://")


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def is_video(name: str) -> bool:
    """True if a file has the suffix of a video."""
    return _suffix(name) in VIDEO_SUFFIXES


def is_live(name: str) -> bool:
    """True for the number of a camera, or an address, unless there is a file of this name."""
    camera = name.isascii() and name.isdigit()
    return (camera or name.lower().startswith(ADDRESSES)) and not os.path.exists(name)


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _images_in(folder: str) -> list[str]:
    """The images of a folder; one log line lists its other entries, except hidden files."""
    found, others, suffixes = [], Counter(), set()
    for entry in os.scandir(folder):
        suffix = _suffix(entry.name)
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            others["folder"] += 1
        elif suffix in VIDEO_SUFFIXES:
            others["video"] += 1
        elif suffix in image_suffixes() and entry.is_file():
            found.append(entry.path)
        elif suffix in HEIC_SUFFIXES:
            others["HEIC image"] += 1
        else:
            others["other file"] += 1
            suffixes.add(suffix or "no suffix")
    notes = {"folder": "**/* includes them", "video": "give its path", "HEIC image": "pip install pillow-heif"}
    notes["other file"] = ", ".join(sorted(suffixes)[:5]) + (", ..." if len(suffixes) > 5 else "")
    rest = ", ".join(f"{_counted(others[kind], kind)} ({notes[kind]})" for kind in notes if others[kind])
    if not found:
        raise FileNotFoundError(f"{folder}: no image in this folder{f', but {rest}' if rest else ''}")
    if rest:
        logger.info("%s: %s; skipped: %s.", folder, _counted(len(found), "image"), rest)
    return found


def find_inputs(patterns: Union[str, os.PathLike, Sequence], live: bool = False) -> list[str]:
    """
    The files given by paths, folders (their images, without subfolders), globs (also ``**``) and registered data sets,
    each once.

    Args:
        patterns: one or more texts or paths.
        live: also take the number of a camera or an address, as it is, see `is_live`.

    Raises:
        FileNotFoundError: a pattern matches nothing, or a folder contains no image.
        DatasetError: a video or camera is given together with other inputs.
    """
    if isinstance(patterns, (str, os.PathLike)):
        patterns = [patterns]
    sources = [os.fspath(pattern) for pattern in patterns if live and is_live(os.fspath(pattern))]
    if sources and len(patterns) > 1:
        raise DatasetError(f"{sources[0]}: a camera or address must be the only input")
    if sources:
        return sources
    files: dict[str, None] = {}
    for pattern in map(os.fspath, patterns):
        path = os.path.expanduser(pattern)
        if os.path.isfile(path):
            found = [path]
        elif os.path.isdir(path):
            found = _images_in(path)
        elif pattern in DatasetCatalog.list():
            found = [os.fspath(record["file_name"]) for record in DatasetCatalog.get(pattern)]
        else:
            found = [name for name in glob.glob(path, recursive=True) if os.path.isfile(name)]
            if not found:
                raise FileNotFoundError(f"{pattern}: no such file, folder or registered data set")
        files.update(dict.fromkeys(sorted(found)))
    if len(files) > 1 and any(map(is_video, files)):
        raise DatasetError(f"{next(filter(is_video, files))}: a video must be the only input")
    return list(files)
