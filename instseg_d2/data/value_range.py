"""Finds one range of values for all images of a data set, from a sample."""

import logging
from collections.abc import Sequence
from typing import NamedTuple, Optional

import numpy as np
import yaml

from ..errors import ImageError
from .eight_bits import Extremes, checked_range, extremes, likely_range
from .images import deep_pixels

__all__ = ["Survey", "common_range", "survey", "trained_range"]

logger = logging.getLogger(__name__)

SAMPLE = 50  # images in the sample
BLACK, VISIBLE = 8, 32  # with fewer levels than BLACK an image looks black or white; with VISIBLE it can be seen


class Survey(NamedTuple):
    """
    The values found in a sample of images.

    Attributes:
        num_read: number of readable images in the sample.
        deep: number of these with more than eight bits.
        value_range: (low, high) that become 0 and 255 in the deep ones; () if there are none.
        misfits: (file name, Extremes) of images that would become almost black or white.
    """

    num_read: int
    deep: int
    value_range: tuple
    misfits: list


def _levels(image: Extremes, value_range: tuple) -> float:
    """The number of the 256 levels that the values of an image cover."""
    low, high = value_range
    inside = min(image.high, high) - max(image.low, low)
    return 256 * max(inside, 0) / (high - low)


def _is_misfit(image: Extremes, value_range: tuple) -> bool:
    own = likely_range([image])
    too_dark = _levels(image, value_range) < BLACK and _levels(image, own) >= VISIBLE
    cut_off = min(image.high, value_range[1]) - max(image.low, value_range[0]) < (image.high - image.low) / 2
    return too_dark or cut_off


def survey(files: Sequence[str], value_range: Sequence = ()) -> Survey:
    """
    Look at a sample of images, spread evenly over the files; eight-bit images are recognised by their header.

    Args:
        files: names of image files; unreadable ones are skipped.
        value_range: (low, high) from INPUT.VALUE_RANGE; empty: the likely range.

    Raises:
        ValueError: ``value_range`` is not a range.
    """
    value_range, num_read, found = checked_range(value_range), 0, []
    for place in np.unique(np.linspace(0, len(files) - 1, min(SAMPLE, len(files))).round().astype(int)):
        try:
            pixels = deep_pixels(files[place])
        except ImageError:
            continue
        num_read += 1
        if pixels is not None:
            found.append((files[place], extremes(pixels)))
    if not found:
        return Survey(num_read, 0, (), [])
    chosen = value_range or likely_range([image for _, image in found])
    return Survey(num_read, len(found), chosen, [pair for pair in found if _is_misfit(pair[1], chosen)])


def common_range(files: Sequence[str], title: str, value_range: Sequence = ()) -> tuple:
    """
    Find and log the range of values that is mapped to 0..255 in all these images; () if the sample has only eight bits.

    Args:
        files: names of image files.
        title: their name in the log.
        value_range: (low, high) already in use; it is only compared with the images.

    Raises:
        ValueError: ``value_range`` is not a range.
    """
    found = survey(files, value_range)
    if found.deep and not value_range:
        low, high = found.value_range
        logger.info(
            "%s: images of more than 8 bits; their values %g to %g become 0 to 255 (see INPUT.VALUE_RANGE).",
            title,
            low,
            high,
        )
    if found.misfits:
        file, image = found.misfits[0]
        logger.warning(
            "%s: %d of %d images do not fit the range of values %g to %g and become almost black or white; the first "
            "is %s with %g to %g (INPUT.VALUE_RANGE sets the range).",
            title,
            len(found.misfits),
            found.deep,
            *found.value_range,
            file,
            image.low,
            image.high,
        )
    return checked_range(value_range) or found.value_range


def trained_range(config: Optional[str]) -> tuple:
    """INPUT.VALUE_RANGE from the YAML config of a checkpoint; () if it has none."""
    values = yaml.safe_load(config) if config else {}
    return checked_range(values.get("INPUT", {}).get("VALUE_RANGE", ()))
