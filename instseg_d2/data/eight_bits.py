"""Values of more than eight bits as 0 to 255: which range of them an image or a data set has. H, W in pixels."""

import logging
import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.utils.logger import log_first_n

__all__ = ["Extremes", "checked_range", "extremes", "likely_range", "three_channels", "to_eight_bits"]

# What cameras and programs store: floats of 0..1 and -1..1, then whole numbers of 8, 10, 12, 14 and 16 bits.
FLOAT_RANGES = ((0, 1), (-1, 1))
RANGES = tuple((0, 2**bits - 1) for bits in (8, 10, 12, 14, 16))
SLACK = 0.05  # of the values' extent: so much may lie outside a range, as resizing leaves it
LEAST_SHARE = 1 / 8  # of a range that the values must fill; else they are stretched


class Extremes(NamedTuple):
    """The lowest and the highest value of an image, single odd pixels aside, and whether it has whole numbers."""

    low: float
    high: float
    whole: bool


def checked_range(value_range: Sequence) -> tuple:
    """
    A range of values as a tuple: (low, high), or () for one that the images decide.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value_range, (tuple, list)):
        numbers = [x for x in value_range if isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x)]
        if len(numbers) == len(value_range) and (not numbers or (len(numbers) == 2 and numbers[0] < numbers[1])):
            return tuple(numbers)
    raise ValueError(f"a range of values is two numbers, the lower one first, as (0, 4095), or (); got {value_range}")


def extremes(values: np.ndarray) -> Extremes:
    """
    The extremes of an image (H, W) or (H, W, 3) of any number type.

    They are those of its 3 x 3 medians, so that hot pixels do not count while small objects do. NaN and infinity do
    not count either; without any finite value both extremes are 0.
    """
    whole = values.dtype.kind in "iu"
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        return Extremes(0.0, 0.0, whole)
    if not finite.all():
        values = np.where(finite, values, np.median(values[finite]))
    medians = cv2.medianBlur(values, 3)
    low, high = (float(str(x)) for x in (medians.min(), medians.max()))  # 0.3, not 0.30000001192092896
    return Extremes(low, high, whole)


def likely_range(images: Sequence[Extremes]) -> tuple[float, float]:
    """
    The range (low, high) that images of one origin were most likely stored in.

    It is the narrowest of the usual ranges that holds their values; the values' own range where they fill little of
    it or no usual one holds them. A fiftieth of the images may lie outside. One step of whole numbers never becomes
    more than one step of eight bits.
    """
    whole = all(image.whole for image in images)
    low = float(np.percentile([image.low for image in images], 2, method="nearest"))
    high = float(np.percentile([image.high for image in images], 98, method="nearest"))
    slack = SLACK * (high - low)
    for bottom, top in RANGES if whole else (*FLOAT_RANGES, *RANGES):
        if bottom - slack <= low and high <= top + slack:
            filled = (high - low) / (top - bottom)
            if filled >= LEAST_SHARE or low == high or (whole and top == 255):
                return bottom, top
            break
    if whole or low == high:
        high = max(high, low + (255 if whole else 1))
    return low, high


def to_eight_bits(values: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """
    uint8 of the same shape: 256 equal parts of the range, what lies outside at its ends, NaN 0. So 0..65535 keep their
    high byte, and 0..255 stay as they are.
    """
    low, high = value_range
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = values.astype(np.result_type(values.dtype, np.float32))
        scaled = (scaled - low) * (256 / (high - low))
    return np.nan_to_num(scaled, nan=0.0).clip(0, 255).astype(np.uint8)


def three_channels(pixels: np.ndarray, value_range: Sequence = ()) -> np.ndarray:
    """
    Grey, RGB or RGBA pixels as (H, W, 3) uint8; those of eight bits keep their values.

    Args:
        pixels: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of any number type or bool; alpha is left out.
        value_range: (low, high) that become 0 and 255; empty: decided from this image, which is said once.
    """
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = pixels.reshape(*pixels.shape[:2], 1)
    pixels = pixels[:, :, :3]
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype != np.uint8:
        if not value_range:
            value_range = likely_range([extremes(pixels)])
            said = "An image of more than 8 bits: values %g to %g become 0 to 255, decided for each image by itself."
            log_first_n(logging.INFO, said % value_range, 1, name=__name__)
        pixels = to_eight_bits(pixels, value_range)
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)
