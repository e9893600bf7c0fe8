"""Draws a scene of the shapes data set: textured, shaded and overlapping objects."""

from dataclasses import dataclass, field
from typing import Optional

import cv2
import numpy as np

__all__ = ["CLASSES", "Scene", "draw_scene", "noise"]

CLASSES = ("circle", "square", "triangle", "star", "ring", "cross")

_SUPERSAMPLING = 4
_MIN_VISIBLE_PIXELS = 48
_MIN_VISIBLE_SHARE = 0.35
# Ranges of the square root of an object's area in pixels: small, medium and large as in COCO, and their shares.
_SIDES = ((13, 31), (33, 94), (99, 135))
_SIDE_SHARES = (0.3, 0.4, 0.3)


@dataclass
class Scene:
    """
    An image (H, W, 3) uint8 BGR, the number of the visible object at each pixel (0: none), the classes of the objects,
    and the labels (H, W) of the ground below the objects, if any.
    """

    image: np.ndarray
    owner: np.ndarray
    labels: list = field(default_factory=list)
    ground: Optional[np.ndarray] = None


def noise(rng, height: int, width: int, cell: float) -> np.ndarray:
    """Smooth noise, about 0..1, with features ``cell`` pixels wide."""
    coarse = rng.random((int(height / cell) + 3, int(width / cell) + 3), dtype=np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _pattern(rng, height: int, width: int, period: float) -> np.ndarray:
    """A pattern of stripes, checks, dots, waves, clouds or a gradient, at a random angle; values in 0..1."""
    angle = rng.uniform(0, np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    u = (np.cos(angle) * x + np.sin(angle) * y) * (2 * np.pi / period)
    v = (np.cos(angle) * y - np.sin(angle) * x) * (2 * np.pi / period)
    kind = rng.choice(("stripes", "checks", "dots", "waves", "clouds", "gradient"))
    if kind == "stripes":
        return (0.5 + 1.5 * np.sin(u)).clip(0, 1)
    if kind == "checks":
        return (0.5 + 3 * np.sin(u) * np.sin(v)).clip(0, 1)
    if kind == "dots":
        return (2 * (np.cos(u) + np.cos(v) - 0.4)).clip(0, 1)
    if kind == "waves":
        return 0.5 + 0.5 * np.sin(u + 1.5 * np.sin(0.7 * v))
    if kind == "clouds":
        return (0.7 * noise(rng, height, width, period) + 0.3 * noise(rng, height, width, period / 3)).clip(0, 1)
    ramp = u - u.min()
    return ramp / max(float(ramp.max()), 1e-6)


def _colour(rng, saturation=(0.25, 0.95), value=(0.25, 1.0)) -> np.ndarray:
    """A random BGR colour, float32 in 0..255."""
    hsv = np.float32([[[rng.uniform(0, 360), rng.uniform(*saturation), rng.uniform(*value)]]])
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0] * 255


def _texture(rng, height: int, width: int, colour: np.ndarray, period: float, contrast: float) -> np.ndarray:
    """A pattern of ``colour`` and of its mix with a random colour, by ``contrast`` (0..1): float32 (H, W, 3)."""
    second = colour + contrast * (_colour(rng) - colour)
    pattern = _pattern(rng, height, width, period)[..., None]
    grain = 0.9 + 0.2 * noise(rng, height, width, 2.5)[..., None]
    return (colour * (1 - pattern) + second * pattern) * grain


def _background(rng, height: int, width: int):
    """One texture, float32 (H, W, 3) BGR, and no labels."""
    colour = _colour(rng, saturation=(0.05, 0.6), value=(0.2, 0.9))
    image = _texture(rng, height, width, colour, period=rng.uniform(14, 120), contrast=rng.uniform(0.1, 0.4))
    clouds = 0.6 * noise(rng, height, width, 70) + 0.4 * noise(rng, height, width, 18)
    return (image * (0.65 + 0.6 * clouds[..., None])).astype(np.float32), None


def _circle(radius: float) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    return radius * np.stack((np.cos(angle), np.sin(angle)), axis=1)


def _outlines(rng, label: str) -> list:
    """The outline of a shape around the origin and, for the ring, its hole: arrays (points, 2) at any scale."""
    if label == "circle":
        return [_circle(1) * (1, rng.uniform(0.82, 1))]
    if label == "square":
        return [np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (1, rng.uniform(0.8, 1))]
    if label == "triangle":
        angle = np.radians([90, 210, 330]) + rng.uniform(-0.15, 0.15, 3)
        return [np.stack((np.cos(angle), np.sin(angle)), axis=1)]
    if label == "star":
        angle = np.arange(10) * np.pi / 5
        radius = np.where(np.arange(10) % 2, rng.uniform(0.4, 0.5), 1)
        return [radius[:, None] * np.stack((np.cos(angle), np.sin(angle)), axis=1)]
    if label == "ring":
        return [_circle(1), _circle(rng.uniform(0.45, 0.62))]
    a = rng.uniform(0.27, 0.38)
    corner = np.array([(a, a), (a, 1), (-a, 1)])
    quarter = np.array([(0, 1), (-1, 0)])  # a turn by 90 degrees, as a right-hand factor
    arms = [corner]
    for _ in range(3):
        arms.append(arms[-1] @ quarter)
    return [np.concatenate(arms)]


def _coverage(outlines: list) -> tuple:
    """The share of each pixel inside the outlines (in pixels), float32 (H, W), and the top left corner (x, y)."""
    points = np.concatenate(outlines)
    start = np.floor(points.min(0)).astype(int) - 1
    width, height = np.ceil(points.max(0)).astype(int) + 1 - start
    fine = np.zeros((height * _SUPERSAMPLING, width * _SUPERSAMPLING), np.uint8)
    scaled = [np.round((o - start) * _SUPERSAMPLING - 0.5).astype(np.int32) for o in outlines]
    cv2.fillPoly(fine, scaled, 255)
    coverage = cv2.resize(fine, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    return coverage.astype(np.float32) / 255, start


def _window(coverage: np.ndarray, start, shape):
    """The slices of the image under a coverage at ``start``, and the part of the coverage inside the image."""
    x0, y0 = np.maximum(start, 0)
    x1 = min(start[0] + coverage.shape[1], shape[1])
    y1 = min(start[1] + coverage.shape[0], shape[0])
    return np.s_[y0:y1, x0:x1], coverage[y0 - start[1] : y1 - start[1], x0 - start[0] : x1 - start[0]]


def _place(rng, label: str, owner: np.ndarray, areas: list):
    """
    Find a place for a new object where enough of it and of every object below stays visible.

    Returns:
        (tuple, ndarray) or None: the window of the image and the coverage in it.
    """
    height, width = owner.shape
    side = rng.uniform(*_SIDES[rng.choice(3, p=_SIDE_SHARES)])
    outlines = _outlines(rng, label)
    areas_of = [cv2.contourArea(np.float32(o)) for o in outlines]
    scale = side / np.sqrt(areas_of[0] - sum(areas_of[1:]))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([(np.cos(angle), np.sin(angle)), (-np.sin(angle), np.cos(angle))]) * scale
    for _ in range(8):
        if areas and rng.random() < 0.4:  # next to an existing object, to overlap it
            y, x = np.nonzero(owner == rng.integers(1, len(areas) + 1))
            pick = rng.integers(len(x))
            centre = np.array((x[pick], y[pick])) + rng.normal(0, 0.45 * side, 2)
        else:
            centre = rng.uniform((0, 0), (width, height))
        centre = centre.clip(0.1 * side, (width - 0.1 * side, height - 0.1 * side))
        window, coverage = _window(*_coverage([o @ turn + centre for o in outlines]), owner.shape)
        covered = coverage >= 0.5
        if covered.sum() < max(_MIN_VISIBLE_PIXELS, 0.4 * side**2):
            continue
        below = np.bincount(owner[window][covered], minlength=len(areas) + 1)[1:]
        visible = np.bincount(owner.ravel(), minlength=len(areas) + 1)[1:] - below
        if all(v >= max(_MIN_VISIBLE_PIXELS, _MIN_VISIBLE_SHARE * a) for v, a in zip(visible, areas)):
            return window, coverage
    return None


def _paint(rng, image: np.ndarray, window, coverage: np.ndarray) -> None:
    """Paint an object into the image, in place: a shadow, then a shaded texture that differs from the pixels below."""
    height, width = coverage.shape
    ground = image[window]
    for _ in range(8):
        colour = _colour(rng)
        if np.abs(colour - ground.mean((0, 1))).max() > 80:
            break
    size = max(height, width)
    texture = _texture(
        rng, height, width, colour, period=rng.uniform(0.12, 0.5) * size + 5, contrast=rng.uniform(0, 0.6)
    )
    light = rng.normal(0, 1, 2)
    light *= rng.uniform(0.1, 0.5) / (np.linalg.norm(light) * size)
    shade = 1 + light[0] * (np.arange(width) - width / 2)[None] + light[1] * (np.arange(height) - height / 2)[:, None]
    inner = cv2.blur(coverage, (5, 5)) * 0.35 + 0.65  # darker towards the edge
    texture *= (shade * inner)[..., None].astype(np.float32)
    alpha = coverage[..., None]
    image[window] = ground * (1 - alpha) + texture * alpha


def _shadow(image: np.ndarray, window, coverage: np.ndarray, offset) -> None:
    """Darken the image where the shadow of an object falls, in place."""
    rows, columns = window
    dx, dy = offset
    whole = np.zeros(image.shape[:2], np.float32)
    whole[rows, columns] = coverage
    shifted = cv2.warpAffine(whole, np.float32([[1, 0, dx], [0, 1, dy]]), whole.shape[::-1])
    image *= 1 - 0.35 * cv2.blur(shifted, (7, 7))[..., None]


def draw_scene(rng: np.random.Generator, paint_ground=_background) -> Scene:
    """
    Draw 0 to 12 objects, later ones over earlier ones, on a background of about 256 x 320 pixels.

    Args:
        paint_ground: (rng, height, width) -> background (H, W, 3) float32 BGR and its labels (H, W) or None;
            default: one texture without labels.
    """
    height, width = int(rng.integers(224, 289)), int(rng.integers(288, 353))
    if rng.random() < 0.25:
        height, width = width, height
    image, ground = paint_ground(rng, height, width)
    owner = np.zeros((height, width), np.uint8)
    labels, areas = [], []
    count = 0 if rng.random() < 0.04 else min(12, 1 + rng.poisson(5))
    shadow = rng.uniform(-4, 4, 2)
    for _ in range(count):
        label = int(rng.integers(len(CLASSES)))
        place = _place(rng, CLASSES[label], owner, areas)
        if place is None:
            continue
        window, coverage = place
        _shadow(image, window, coverage, shadow)
        _paint(rng, image, window, coverage)
        covered = coverage >= 0.5
        labels.append(label)
        areas.append(int(covered.sum()))
        owner[window][covered] = len(labels)
    image += rng.uniform(1, 5) * rng.standard_normal(image.shape, dtype=np.float32)
    return Scene(image.clip(0, 255).astype(np.uint8), owner, labels, ground)
