"""
Reads masks and boxes of COCO annotations in all common notations, and tells what makes one unusable.

A mask is polygons [[x0, y0, x1, y1, ...], ...] or an RLE {"size": [height, width], "counts": ...}, in pixels. Its
bounds are the corners [x0, y0, x1, y1] around it. A box is [x, y, width, height].
"""

import math
from collections.abc import Iterator
from operator import mul
from typing import Optional

import numpy as np
import pycocotools.mask as mask_util

__all__ = ["LARGEST_SIDE", "areas_differ", "bounds_of", "mask_area", "read_box", "read_mask", "rle_counts"]

LARGEST_SIDE = 100_000  # pixels; larger values are mistakes and make pycocotools allocate too much memory
AREA_TOLERANCE = 0.2  # relative difference above which an area disagrees with its mask
_CORNER_KEYS = (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2"), ("x0", "y0", "x1", "y1"))
_SIDE_KEYS = (("x", "y", "width", "height"), ("x", "y", "w", "h"), ("left", "top", "width", "height"))


def rle_counts(rle: dict) -> list:
    """
    Run lengths of an RLE, compressed (a string) or not (a list), background first.

    COCO's string stores a number in one or more characters: bits 0-4 of (character - 48) are data, bit 5 means that
    more characters follow, and the last data bit is the sign. From the fourth run on, the number is the difference
    from the run before the previous one.
    """
    counts = rle["counts"]
    if isinstance(counts, list):
        return [int(c) for c in counts]
    runs, value, shift = [], 0, 0
    for character in counts.encode() if isinstance(counts, str) else counts:
        data = character - 48
        value |= (data & 31) << shift
        shift += 5
        if not data & 32:
            if data & 16:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value, shift = 0, 0
    return runs


def _is_point(value) -> bool:
    if isinstance(value, dict):
        return value.keys() >= {"x", "y"}
    return isinstance(value, list) and len(value) == 2 and not any(isinstance(v, (list, dict)) for v in value)


def _parts(value) -> Iterator:
    """The polygons [x0, y0, ...] and RLEs of a mask, at any depth; points may be pairs or {"x": , "y": }."""
    if not isinstance(value, list):
        yield value
    elif value and all(map(_is_point, value)):
        yield [v for point in value for v in ((point["x"], point["y"]) if isinstance(point, dict) else point)]
    elif not any(isinstance(part, (list, dict)) for part in value):
        yield value
    else:
        for part in value:
            yield from _parts(part)


_EMPTY = "empty RLE"
_OTHER_NOTATION = "mask or box in another notation"
_PIXELS = {"0", "1", "False", "True"}
_NO_POLYGON = ("polygon with fewer than 3 points", "polygon with an odd number of coordinates")


def _polygon_fault(polygon: list) -> Optional[str]:
    if len(polygon) < 6 or len(polygon) % 2:
        return _NO_POLYGON[len(polygon) >= 6]
    try:
        finite = math.isfinite(sum(polygon))
    except (TypeError, OverflowError):
        finite = False
    if not finite:
        return "polygon with a coordinate that is not a number"
    if max(polygon) > LARGEST_SIDE or min(polygon) < -LARGEST_SIDE:
        return f"polygon with a coordinate beyond {LARGEST_SIDE}"
    return None


def _rle_fault(rle, width: int, height: int) -> Optional[str]:
    try:
        size, runs = list(rle["size"]), rle_counts(rle)
    except (TypeError, KeyError, ValueError, IndexError, OverflowError):
        return "mask that is neither polygon nor RLE"
    if size != [height, width]:
        return "RLE of another size than the image"
    if sum(runs) != height * width or min(runs) < 0:
        return "broken RLE"
    return None if sum(runs[1::2]) else _EMPTY


def _is_plain(mask) -> bool:
    """True for COCO's own notation."""
    if isinstance(mask, dict):
        return "counts" in mask
    return isinstance(mask, list) and all(
        isinstance(part, list) and len(part) >= 6 and not isinstance(part[0], (list, dict)) for part in mask
    )


def _is_pixels(mask, width: int, height: int) -> bool:
    """True for a mask written as rows of 0 and 1."""
    if not isinstance(mask, list) or len(mask) != height:
        return False
    return all(isinstance(row, list) and len(row) == width and set(map(repr, row)) <= _PIXELS for row in mask)


def read_mask(mask, width: int, height: int) -> tuple:
    """
    Convert a mask to COCO's own notation. Accepts points as pairs or {"x": , "y": }, a single polygon and nested lists;
    rows of 0 and 1, several RLEs, and polygons mixed with RLEs become one RLE. A part that is not a valid polygon is
    dropped if another part is.

    Args:
        width, height: of the image, in pixels.

    Returns:
        The mask; what was repaired, or None; what makes the mask unusable, or None.
    """
    if _is_pixels(mask, width, height):
        code = mask_util.encode(np.asfortranarray(mask, np.uint8))
        return (_json(code), _OTHER_NOTATION, None) if mask_util.area(code) else (mask, None, _EMPTY)
    plain = _is_plain(mask)
    try:
        parts = list(_parts(mask)) if not plain else [mask] if isinstance(mask, dict) else mask
    except RecursionError:
        parts = [None]
    polygons, rles, left_out = [], [], None
    for part in parts:
        fault = _polygon_fault(part) if isinstance(part, list) else _rle_fault(part, width, height)
        if fault in _NO_POLYGON:
            left_out = left_out or fault
        elif fault:
            return mask, None, fault
        else:
            (polygons if isinstance(part, list) else rles).append(part)
    if not polygons and not rles:
        return mask, None, "polygon whose points are not pairs" if len(parts) > 2 else left_out
    repaired = None if plain else _OTHER_NOTATION
    if left_out:
        repaired = "mask with parts of fewer than 3 points"
    if not rles:
        return polygons, repaired, None
    if len(rles) + len(polygons) == 1:
        return rles[0], repaired, None
    codes = [_compressed(rle, width, height) for rle in (*rles, *([polygons] if polygons else []))]
    return _json(mask_util.merge(codes)), repaired, None


def _json(code: dict) -> dict:
    """Convert a pycocotools RLE to its form in JSON."""
    return {"size": list(code["size"]), "counts": code["counts"].decode()}


def _compressed(mask, width: int, height: int) -> dict:
    """The mask as one RLE in pycocotools' form."""
    if isinstance(mask, dict) and not isinstance(mask["counts"], list):
        return mask
    codes = mask_util.frPyObjects(mask, height, width)
    return mask_util.merge(codes) if isinstance(codes, list) else codes


def bounds_of(mask, width: int, height: int) -> list:
    """Corners [x0, y0, x1, y1] around a valid mask; those of polygons may lie outside the image."""
    if isinstance(mask, dict):
        x, y, w, h = mask_util.toBbox(_compressed(mask, width, height)).tolist()
        return [x, y, x + w, y + h]
    x, y = ([limit(polygon[axis::2]) for polygon in mask for limit in (min, max)] for axis in (0, 1))
    return [float(v) for v in (min(x), min(y), max(x), max(y))]


def _enclosed(polygon: list, width: int, height: int) -> float:
    """Area in square pixels of a polygon [x0, y0, ...] whose points are clipped to the image."""
    x, y = polygon[0::2], polygon[1::2]
    if min(polygon) < 0 or max(x) > width or max(y) > height:
        x, y = ([min(max(v, 0), end) for v in values] for values, end in ((x, width), (y, height)))
    twice = sum(map(mul, x, y[1:])) + x[-1] * y[0] - sum(map(mul, y, x[1:])) - y[-1] * x[0]
    return abs(float(twice)) / 2


def areas_differ(listed: float, area: float) -> bool:
    """True if a listed area disagrees with the object's area."""
    return abs(listed - area) > max(4.0, AREA_TOLERANCE * area)


def mask_area(mask, width: int, height: int, listed: Optional[float] = None) -> float:
    """
    Number of pixels of a valid mask inside the image. If the area enclosed by its polygons is under a pixel, or close
    to the ``listed`` area, that area is returned instead.
    """
    if isinstance(mask, dict):
        return float(sum(rle_counts(mask)[1::2]))
    if listed is not None and len(mask) == 1:  # avoids rasterising nearly all polygons
        area = _enclosed(mask[0], width, height)
        if area >= 1 and not areas_differ(listed, area):
            return area
    return float(mask_util.area(_compressed(mask, width, height))) or sum(_enclosed(p, width, height) for p in mask)


def read_box(box) -> tuple:
    """
    Read a box [x, y, width, height] in pixels, also from a dict with the usual keys or a list with one box.

    Returns:
        The box as 4 floats, or None; whether it was in another notation; what makes it unusable, or None.
    """
    if not box:
        return None, False, "annotation with neither box nor mask"
    other = isinstance(box, dict) or (isinstance(box, list) and len(box) == 1)
    if isinstance(box, list) and other:
        box = box[0]
    if isinstance(box, dict):
        keys = next((keys for keys in (*_CORNER_KEYS, *_SIDE_KEYS) if box.keys() >= set(keys)), ())
        box, corners = [box[key] for key in keys], keys in _CORNER_KEYS
    else:
        corners = False
    try:
        x, y, w, h = (float(v) if isinstance(v, (int, float)) else None for v in box)
        if corners:
            w, h = w - x, h - y
        finite = math.isfinite(x + y + w + h)
    except (TypeError, ValueError, OverflowError):
        return None, False, "box that is not 4 numbers"
    if not (w > 0 and h > 0 and finite):
        return None, False, "box without area"
    return [x, y, w, h], other, None
