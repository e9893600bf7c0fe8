"""Maps images of more than eight bits to 0..255, and finds the range of their values. H x W pixels."""

import logging
import math
from collections.abc import Sequence
from numbers import Real
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.utils.logger import log_first_n

__all__ = ["Extremes", "checked_range", "extremes", "likely_range", "three_channels", "to_eight_bits"]

# Ranges that cameras and programs store: floats in 0..1 and -1..1, then integers of 8, 10, 12, 14 and 16 bits.
FLOAT_RANGES = ((0, 1), (-1, 1))
RANGES = tuple((0, 2**bits - 1) for bits in (8, 10, 12, 14, 16))
SLACK = 0.05  # share of the values' extent that may exceed a range, since resizing overshoots
MIN_SHARE = 1 / 8  # share of a range that the values must fill, or they are stretched


class Extremes(NamedTuple):
    """The lowest and highest value of an image, without outlier pixels, and whether its values are integers."""

    low: float
    high: float
    whole: bool


def checked_range(value_range: Sequence) -> tuple:
    """
    A range of values as a tuple: (low, high), or () to estimate it from the images.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value_range, (tuple, list)):
        numbers = [x for x in value_range if isinstance(x, Real) and not isinstance(x, bool) and math.isfinite(x)]
        if len(numbers) == len(value_range) and (not numbers or (len(numbers) == 2 and numbers[0] < numbers[1])):
            return tuple(numbers)
    raise ValueError(f"value_range must be two numbers, the lower first, such as (0, 4095), or (); got {value_range}")


def extremes(values: np.ndarray) -> Extremes:
    """
    The extremes of an image (H, W) or (H, W, 3) of any numeric dtype.

    They are taken over 3 x 3 medians, which ignore hot pixels but not small objects. NaN and infinity are ignored, too;
    without any finite value both extremes are 0.
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
    The range (low, high) in which images from one source were most likely stored.

    It is the narrowest common range that contains their values. If they fill little of it, or no common range contains
    them, it is their own range. One in fifty images may lie outside. A step of 1 between integers never becomes more
    than a step of 1 in eight bits.
    """
    whole = all(image.whole for image in images)
    low = float(np.percentile([image.low for image in images], 2, method="nearest"))
    high = float(np.percentile([image.high for image in images], 98, method="nearest"))
    slack = SLACK * (high - low)
    for bottom, top in RANGES if whole else (*FLOAT_RANGES, *RANGES):
        if bottom - slack <= low and high <= top + slack:
            filled = (high - low) / (top - bottom)
            if filled >= MIN_SHARE or low == high or (whole and top == 255):
                return bottom, top
            break
    if whole or low == high:
        high = max(high, low + (255 if whole else 1))
    return low, high


def to_eight_bits(values: np.ndarray, value_range: tuple[float, float]) -> np.ndarray:
    """
    Divide the range into 256 equal parts: uint8 of the same shape. Values outside are clipped, NaN becomes 0. Values in
    0..65535 keep their high byte, and values in 0..255 do not change.
    """
    low, high = value_range
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = values.astype(np.result_type(values.dtype, np.float32))
        scaled = (scaled - low) * (256 / (high - low))
    return np.nan_to_num(scaled, nan=0.0).clip(0, 255).astype(np.uint8)


def three_channels(pixels: np.ndarray, value_range: Sequence = ()) -> np.ndarray:
    """
    Convert grey, RGB or RGBA pixels to (H, W, 3) uint8; eight-bit pixels keep their values.

    Args:
        pixels: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of any numeric dtype or bool; alpha is dropped.
        value_range: (low, high) that become 0 and 255; empty: estimated from this image, which is logged once.
    """
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = pixels.reshape(*pixels.shape[:2], 1)
    pixels = pixels[:, :, :3]
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if pixels.dtype != np.uint8:
        if not value_range:
            value_range = likely_range([extremes(pixels)])
            note = "An image has more than 8 bits: values %g to %g become 0 to 255; the range is estimated per image."
            log_first_n(logging.INFO, note % value_range, 1, name=__name__)
        pixels = to_eight_bits(pixels, value_range)
    return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)
