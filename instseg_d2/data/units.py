"""
Finds systematic mistakes in the coordinates of a file: their unit, their order, and the format of boxes.

N objects. Boxes (N, 4) are the numbers in the file, which should be [x, y, width, height]. Bounds (N, 4) are the
corners x0 y0 x1 y1 around the masks. Both are nan if an object has none. sizes (N, 2): width and height of the images.
A reading is a set of names in READINGS.
"""

from typing import NamedTuple

import numpy as np

from ..arguments import READINGS

__all__ = ["READINGS", "Cause", "Geometry", "convert", "corners", "diagnose", "differ", "fractions"]

_SCALES = {"normalised": 1.0, "percent": 100.0}
_BOX_READINGS = [
    tuple(name for name in (scale, layout) if name)
    for scale in (None, *_SCALES)
    for layout in (None, "swapped", "xyxy", "centre")
    if scale or layout
]
_POLYGON_READINGS = [reading for reading in _BOX_READINGS if not {"xyxy", "centre"} & set(reading)]
BOX_TOLERANCE = 0.1  # of the longer side, and at least 2 pixels
_EVIDENCE = 1e-12  # accepted probability that pixels look like percent by chance


class Geometry(NamedTuple):
    """
    boxes, bounds: (N, 4); sizes: (N, 2). polygons: (N,) bool, True if the bounds come from polygons, not from an RLE.
    areas: (N,) as listed, nan if missing.
    """

    boxes: np.ndarray
    bounds: np.ndarray
    sizes: np.ndarray
    polygons: np.ndarray
    areas: np.ndarray


class Cause(NamedTuple):
    """part: "boxes", "polygons" or "coordinates" (both); objects: (N,) bool, those explained by the cause."""

    part: str
    reading: tuple
    objects: np.ndarray

    @property
    def what(self) -> str:
        """The cause as the name of a fault."""
        return f"annotations: {self.part} look like {' and '.join(READINGS[name] for name in self.reading)}"


def read_points(points: np.ndarray, sizes: np.ndarray, reading) -> np.ndarray:
    """Convert points to pixels, x before y: (..., 2) in one image, or (N, 2) in images of these sizes."""
    if "swapped" in reading:
        points = points[..., ::-1]
    for name, whole in _SCALES.items():
        if name in reading:
            points = points * (sizes / whole)
    return points


def _read_pairs(boxes, sizes, reading) -> np.ndarray:
    return np.concatenate([read_points(boxes[:, :2], sizes, reading), read_points(boxes[:, 2:], sizes, reading)], 1)


def corners(boxes: np.ndarray, sizes: np.ndarray, reading=()) -> np.ndarray:
    """Corners x0 y0 x1 y1 (N, 4) in pixels of boxes (N, 4) under a reading."""
    first, second = np.split(_read_pairs(boxes, sizes, reading), 2, axis=1)
    if "centre" in reading:
        first = first - second / 2
    return np.concatenate([first, second if "xyxy" in reading else first + second], 1)


def _longer_side(bounds) -> np.ndarray:
    return (bounds[:, 2:] - bounds[:, :2]).max(1)


def differ(found: np.ndarray, wanted: np.ndarray, share: float = 1.0) -> np.ndarray:
    """
    Which corners (N, 4) differ from the wanted ones by more than ``share`` of the tolerance: (N,) bool, False if either
    is nan.
    """
    return np.abs(found - wanted).max(1) > share * np.maximum(2.0, BOX_TOLERANCE * _longer_side(wanted))


def _inside(bounds, sizes) -> np.ndarray:
    """Which corners enclose an area and exceed the image by at most 1 % or 2 pixels."""
    slack = np.maximum(2.0, 0.01 * sizes)
    positive = (bounds[:, 2:] > bounds[:, :2]).all(1)
    return positive & (bounds[:, :2] >= -slack).all(1) & (bounds[:, 2:] <= sizes + slack).all(1)


def _contradiction(x: Geometry) -> list:
    """The reading of boxes or polygons that makes the two agree."""
    both = np.isfinite(x.boxes).all(1) & np.isfinite(x.bounds).all(1)
    listed, clipped = corners(x.boxes, x.sizes), np.clip(x.bounds, 0, np.tile(x.sizes, 2))
    wrong = both & differ(listed, clipped)
    if not wrong.any() or wrong.sum() < 0.1 * both.sum():
        return []
    candidates = []
    for reading in _BOX_READINGS:
        read = corners(x.boxes, x.sizes, reading)
        candidates.append(("boxes", reading, ~(differ(read, x.bounds, 0.5) & differ(read, clipped, 0.5)), x.bounds))
    for reading in _POLYGON_READINGS:
        read = _read_pairs(x.bounds, x.sizes, reading)
        candidates.append(("polygons", reading, x.polygons & ~differ(read, listed, 0.5), listed))
    # If boxes or polygons could be swapped, choose those that leave the image.
    part, reading, fits, _ = max(
        candidates, key=lambda c: (c[2][wrong].sum(), -len(c[1]), _inside(c[3], x.sizes)[wrong].sum())
    )
    return [Cause(part, reading, wrong & fits)] if fits[wrong].mean() >= 0.9 else []


def fractions(x: Geometry) -> np.ndarray:
    """Which objects have all coordinates in 0..1 though their image is larger: (N,) bool; False for RLEs."""
    values = np.concatenate([x.boxes, x.bounds], 1)
    known = np.isfinite(values)
    rles = known[:, 4:].all(1) & ~x.polygons
    large = x.sizes.max(1) > 1
    return large & known.any(1) & ~rles & (np.where(known, np.abs(values - 0.5), 0) <= 0.55).all(1)


def _looks_like_percent(extent, sizes) -> bool:
    """True if coordinates in large images spread up to 100 but never beyond."""
    if not ((extent >= -0.5) & (extent <= 100.5)).all() or extent[:, 2:].max(0).min() < 75:
        return False
    return np.log10(np.maximum(sizes / 100, 1)).sum() > -np.log10(_EVIDENCE)


def _agreement(x: Geometry) -> list:
    """The mistake that box and mask share, or of boxes without masks: another unit, swapped, corners."""
    boxed = np.isfinite(x.boxes).all(1)
    alone = boxed & ~np.isfinite(x.bounds).all(1)
    known = alone | x.polygons & np.isfinite(x.bounds).all(1)
    if not known.any():
        return []
    sizes, listed = x.sizes[known], corners(x.boxes, x.sizes)

    def extent(*reading):
        read = np.where(
            x.polygons[:, None], _read_pairs(x.bounds, x.sizes, reading), corners(x.boxes, x.sizes, reading)
        )
        return read[known]

    outside = ~_inside(extent(), sizes)
    if outside.sum() >= max(3, 0.1 * len(sizes)):
        for name in ("xyxy", "centre", "swapped", "percent"):
            of_boxes = name in ("xyxy", "centre")
            if (not of_boxes or (alone == known).all()) and _inside(extent(name), sizes).mean() >= 0.99:
                return [Cause("boxes" if of_boxes else "coordinates", (name,), known)]
    if _looks_like_percent(extent(), sizes):
        return [Cause("coordinates", ("percent",), known)]
    # Boxes without masks whose listed areas fit another reading.
    own, other = ((c[:, 2:] - c[:, :2]).prod(1) for c in (listed, corners(x.boxes, x.sizes, ("xyxy",))))
    off = alone & (np.abs(own - x.areas) > 0.1 * x.areas)
    if off.sum() >= max(3, 0.5 * alone.sum()) and (np.abs(other - x.areas) <= 0.02 * x.areas)[off].mean() >= 0.9:
        return [Cause("boxes", ("xyxy",), alone)]
    return []


def diagnose(geometry: Geometry) -> list:
    """
    The likely causes of contradictions between boxes and masks, or between objects and images.

    Returns:
        At most one Cause, or two if normalised coordinates hide a second one.
    """
    with np.errstate(invalid="ignore"):
        tiny = fractions(geometry)
        if not len(tiny) or tiny.mean() < 0.9:
            return _contradiction(geometry) or _agreement(geometry)
        boxes, bounds = (_read_pairs(x, geometry.sizes, ("normalised",)) for x in geometry[:2])
        scaled = geometry._replace(boxes=boxes, bounds=bounds)
        return [Cause("coordinates", ("normalised",), tiny), *(_contradiction(scaled) or _agreement(scaled))]


def convert(annotations: list, geometry: Geometry, causes: list, assume) -> list:
    """
    Convert coordinates from the assumed readings to pixels, in place: those of the objects and parts that a cause
    names, otherwise all. The readings xyxy and centre apply only to boxes.

    Returns:
        The indices of the converted annotations.
    """
    boxed = np.isfinite(geometry.boxes).all(1)
    todo, steps = [name for name in READINGS if name in assume], []
    for cause in causes:
        if set(cause.reading) <= set(todo):
            steps.append((cause.part, cause.reading, cause.objects))
            todo = [name for name in todo if name not in cause.reading]
    for name in todo:
        steps.append(("boxes" if name in ("xyxy", "centre") else "coordinates", (name,), boxed | geometry.polygons))
    for part, reading, objects in steps:
        for i in np.flatnonzero(objects & boxed) if part != "polygons" else ():
            box, size = np.array([annotations[i]["bbox"]], float), geometry.sizes[i : i + 1]
            x0, y0, x1, y1 = corners(box, size, reading)[0].tolist()
            annotations[i]["bbox"] = [x0, y0, x1 - x0, y1 - y0]
        for i in np.flatnonzero(objects & geometry.polygons) if part != "boxes" else ():
            points = [np.reshape(polygon, (-1, 2)) for polygon in annotations[i]["segmentation"]]
            points = [read_points(x, geometry.sizes[i], reading).ravel().tolist() for x in points]
            annotations[i]["segmentation"] = points
    return sorted({int(i) for *_, objects in steps for i in np.flatnonzero(objects)})
