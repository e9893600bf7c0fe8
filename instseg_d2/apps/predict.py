"""
Detects on image files or a video, and writes pictures, ``results.json`` and ``index.html`` into one folder.

``results.json`` is in COCO's results format (``pycocotools.coco.COCO.loadRes`` reads it) with ``file_name`` and
``category_name`` added. ``image_id`` is the number of the image, or of the video's frame, from 1 in reading order.
"""

import contextlib
import logging
import os
from collections.abc import Sequence
from typing import Optional, Union

from ..errors import ConfigError
from ..inference.image_predictor import ImagePredictor
from .inputs import find_inputs, is_live, is_video
from .predict_images import ImageOptions, ImageRun
from .predict_video import VideoRun
from .video import source_name

__all__ = ["run_demo"]

logger = logging.getLogger(__name__)


def run_demo(
    predictor: ImagePredictor,
    inputs: Union[str, os.PathLike, Sequence],
    output: Union[str, os.PathLike],
    *,
    score_threshold: float = 0.5,
    max_images: Optional[int] = None,
    batch: int = 1,
    track: bool = False,
    every: int = 1,
    **options,
) -> bool:
    """
    Detect on every input and write the pictures, ``results.json`` and ``index.html`` into ``output``.

    Files that cannot be read and pictures that cannot be written are reported and skipped. An interrupted run writes
    what is done so far; a killed run leaves its results in ``results.jsonl``.

    Args:
        inputs: paths, folders, globs, or one video, camera or address.
        output: folder, created if missing; not the folder of the inputs. A shard writes to ``shard_I_of_N`` there.
        score_threshold: instances that score lower are dropped, for every method.
        max_images: stop after this many images or frames.
        batch: number of images at a time, see `Pipeline`; the results are the same.
        track, every: for videos, see `VideoRun`.
        options: for images, see `ImageOptions`. ``label_format`` "coco": only ``results.json``; "labelme", "yolo",
            "label-studio" or "png": also labels for this program, or VOC's maps of the objects, in a folder of this
            name.

    Returns:
        True if at least one image was processed, now or in the run that is continued.

    Raises:
        FileNotFoundError, ImageError, ConfigError: an input or argument is invalid.
        OSError: the results cannot be written.
    """
    if not 0 <= score_threshold <= 1:
        raise ConfigError(f"the score threshold must be between 0 and 1; got {score_threshold}")
    if batch < 1:
        raise ConfigError(f"the number of images at a time must be at least 1; got {batch}")
    if max_images is not None and max_images < 1:
        raise ConfigError(f"the number of images must be at least 1; got {max_images}")
    if every < 1:
        raise ConfigError(f"--every must be at least 1; got {every}")
    files, output = find_inputs(inputs, live=True), os.path.expanduser(output)
    folders = {os.path.realpath(os.path.dirname(file)) for file in files if not is_live(file)}
    if os.path.realpath(output) in folders:
        raise ConfigError(f"{output} contains the input files, which would be overwritten; choose another folder")
    if os.path.exists(output) and not os.path.isdir(output):
        raise ConfigError(f"{output} is a file; the output must be a folder")
    arguments = predictor, output, score_threshold, batch
    options = ImageOptions(**options)
    if is_video(files[0]) or is_live(files[0]):
        run = _video_run(arguments, files[0], max_images, track, every, options)
    elif track or every > 1:
        raise ConfigError(
            f"{files[0]} is an image; {'--track' if track else '--every'} works only on videos and cameras"
        )
    else:
        run = _image_run(arguments, files, options, max_images)
    try:
        run.process()
    except KeyboardInterrupt:
        logger.warning("Stopped; writing what is done so far.")
    except BaseException:
        with contextlib.suppress(OSError):
            run.finish()
        raise
    written = run.finish()
    run.report()
    logger.info("Written: %s", written)
    return run.worked


def _video_run(arguments, source, max_images, track, every, options: ImageOptions) -> VideoRun:
    for name, wanted in options.only_for_images().items():
        if wanted:
            shown = f"{source_name(source)} is a camera" if is_live(source) else f"{source} is a video"
            raise ConfigError(f"{shown}; {name} works only on images")
    return VideoRun(*arguments, source, max_images, track, every)


def _image_run(arguments, files, options: ImageOptions, max_images: Optional[int]) -> ImageRun:
    predictor, output, *others = arguments
    first, count = options.shard
    if not 1 <= first <= count:
        raise ConfigError(f"the shard must be I/N with 1 <= I <= N, such as 1/4; got {first}/{count}")
    if count > 1:
        output = os.path.join(output, f"shard_{first}_of_{count}")
    return ImageRun(predictor, output, *others, files, options, max_images)
