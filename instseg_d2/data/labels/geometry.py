"""
Masks as polygons, to the pixel. A ring is (N, 2) corners x, y in pixels; a piece is a ring with the rings of its holes.
"""

import math

import cv2
import numpy as np
import pycocotools.mask as mask_util
from scipy.spatial import cKDTree

from ..segmentations import to_rle

__all__ = ["bridged", "ellipse", "has_overlaps", "pieces", "rectangle", "traced"]

Piece = tuple[np.ndarray, list[np.ndarray]]


def _corners(ring: np.ndarray) -> np.ndarray:
    """The corners of a ring whose steps are 0 or 1 pixel along an axis."""
    ring = ring[(ring != np.roll(ring, 1, 0)).any(1)]
    turns = (np.roll(ring, -1, 0) - ring != ring - np.roll(ring, 1, 0)).any(1)
    return ring[turns].astype(float)


def traced(rle: dict) -> list[Piece]:
    """
    The pieces of a compressed RLE, along the borders of its pixels: COCO's rule gives the same mask again. Holes run in
    the other direction than their outer ring. Pixels that touch at a corner belong to one piece.
    """
    x, y, w, h = mask_util.toBbox(rle).astype(int)
    mask = mask_util.decode(rle)[y : y + h, x : x + w]
    # OpenCV goes through pixel centres. At twice the size, each corner of a pixel has a centre of its own.
    twice = mask.repeat(2, 0).repeat(2, 1)
    contours, tree = cv2.findContours(twice, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rings = [_corners((contour.reshape(-1, 2) + 1) // 2 + (x, y)) for contour in contours]
    parents = [int(parent) for parent in tree.reshape(-1, 4)[:, 3]] if rings else []
    holes = {i: [] for i, parent in enumerate(parents) if parent < 0}
    for ring, parent in zip(rings, parents):
        if parent >= 0:
            holes[parent].append(ring)
    return [(rings[i], inner) for i, inner in holes.items()]


def rectangle(box) -> np.ndarray:
    """The ring of a box [x, y, width, height]."""
    x, y, w, h = box
    return np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]], float)


def ellipse(x: float, y: float, rx: float, ry: float, angle: float = 0.0) -> list:
    """A polygon [x0, y0, ...] of 72 corners with the area of the ellipse; angle in radians."""
    turns = np.arange(72) * (math.pi / 36)
    swell = math.sqrt((math.pi / 36) / math.sin(math.pi / 36))
    cos, sin = math.cos(angle), math.sin(angle)
    with np.errstate(all="ignore"):  # the check of polygons finds infinite ones
        u, v = rx * swell * np.cos(turns), ry * swell * np.sin(turns)
        return np.stack([x + u * cos - v * sin, y + u * sin + v * cos], 1).round(3).ravel().tolist()


def pieces(annotation: dict, image: dict, *, inside: bool = False) -> list[Piece]:
    """
    The pieces of a checked annotation: its polygons as they are, its RLE traced, or its box.

    Args:
        inside: cut off what is outside the image.
    """
    mask = annotation.get("segmentation")
    width, height = image["width"], image["height"]
    if not mask:
        ring = rectangle(annotation["bbox"])
        return [(ring.clip(0, (width, height)) if inside else ring, [])]
    if isinstance(mask, list):
        rings = [np.array(polygon, float).reshape(-1, 2) for polygon in mask]
        points = np.concatenate(rings)
        if not inside or (points.min() >= 0 and (points <= (width, height)).all()):
            return [(ring, []) for ring in rings]
    return traced(to_rle(mask, height, width))


def has_overlaps(rings: list[np.ndarray], image: dict) -> bool:
    """True if rings of an object share pixels; as one ring, these would count as outside."""
    codes = mask_util.frPyObjects([ring.ravel() for ring in rings], image["height"], image["width"])
    # One at a time: of over 255 masks, pycocotools raises an OverflowError with NumPy 2.
    return sum(int(mask_util.area(code)) for code in codes) != int(mask_util.area(mask_util.merge(codes)))


def bridged(rings: list[np.ndarray]) -> np.ndarray:
    """One ring through all rings; bridges of no width join the first with each other one, where they are nearest."""
    first, *others = rings
    tree = cKDTree(first)
    detours: dict[int, list] = {}  # at each corner of the first ring
    for ring in others:
        distances, nearest = tree.query(ring)
        j = int(distances.argmin())
        i = int(nearest[j])
        detours.setdefault(i, []).extend([ring[j:], ring[: j + 1], first[i : i + 1]])
    parts, start = [], 0
    for i in sorted(detours):
        parts += [first[start : i + 1], *detours[i]]
        start = i + 1
    return np.concatenate([*parts, first[start:]])
