"""Pictures of what a network sees: coloured maps, heat maps over images, titled grids. H x W pixels, h x w cells."""

from collections.abc import Sequence
from typing import Optional

import cv2
import numpy as np

__all__ = ["colorize", "overlay_heatmap", "titled_grid"]

FONT = cv2.FONT_HERSHEY_SIMPLEX
INK, PAPER = (30, 30, 30), 255


def colorize(
    map2d: np.ndarray, vmin: Optional[float] = None, vmax: Optional[float] = None, colormap: int = cv2.COLORMAP_VIRIDIS
) -> np.ndarray:
    """
    Convert a map of numbers to colours.

    Args:
        map2d: (H, W) numbers or booleans; NaN becomes grey.
        vmin, vmax: values of the lowest and the highest colour; None: the map's finite extremes.
        colormap: one of OpenCV's ``COLORMAP_*``.

    Returns:
        (H, W, 3) uint8, RGB. A constant map has the lowest colour everywhere.

    Raises:
        ValueError: the map is not two-dimensional.
    """
    values = np.asarray(map2d)
    if values.ndim != 2:
        raise ValueError(f"map2d must have two dimensions (H, W); got {values.shape}")
    if values.size == 0:
        return np.zeros((*values.shape, 3), np.uint8)
    values = values.astype(np.float32)
    finite = np.isfinite(values)
    known = values[finite] if finite.any() else np.zeros(1, np.float32)
    low = float(known.min()) if vmin is None else vmin
    high = float(known.max()) if vmax is None else vmax
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low) - low) / max(high - low, 1e-12)
    colors = cv2.applyColorMap((scaled.clip(0, 1) * 255).round().astype(np.uint8), colormap)[..., ::-1].copy()
    colors[np.isnan(values)] = 128
    return colors


def overlay_heatmap(
    image_rgb: np.ndarray,
    map2d: np.ndarray,
    alpha: float = 0.5,
    vmin: Optional[float] = None,
    vmax: Optional[float] = None,
    colormap: int = cv2.COLORMAP_VIRIDIS,
) -> np.ndarray:
    """
    Draw a map over its image: the map is resized to the image (bilinearly), coloured and blended.

    Args:
        image_rgb: (H, W, 3) uint8, RGB.
        map2d: (h, w) numbers that cover the whole image.
        alpha: opacity of the colours, 0 to 1.
        vmin, vmax, colormap: as in :func:`colorize`.

    Returns:
        (H, W, 3) uint8, RGB.
    """
    height, width = image_rgb.shape[:2]
    resized = cv2.resize(np.asarray(map2d, np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return cv2.addWeighted(image_rgb, 1 - alpha, colorize(resized, vmin, vmax, colormap), alpha, 0)


def _fit(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The image scaled to fit width x height; the cells of small maps stay visible."""
    factor = min(width / image.shape[1], height / image.shape[0])
    size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
    enlarge = cv2.INTER_NEAREST if factor >= 3 else cv2.INTER_LINEAR
    way = cv2.INTER_AREA if factor < 1 else enlarge
    return cv2.resize(image, size, interpolation=way)


def _shorten(text: str, scale: float, width: int) -> str:
    """Shorten the text with "..." if it is wider than ``width`` pixels."""
    shown = text
    while text and cv2.getTextSize(shown, FONT, scale, 1)[0][0] > width:
        text = text[:-1]
        shown = text.rstrip() + "..."
    return shown


def titled_grid(
    panels: Sequence[tuple[str, np.ndarray]], columns: Optional[int] = None, cell_width: int = 320
) -> np.ndarray:
    """
    Arrange pictures in a grid on white, each below its title.

    Args:
        panels: (title, (h, w, 3) uint8 RGB picture). Pictures may differ in size; each is scaled to the cell's width,
            but to at most one and a half times that in height.
        columns: pictures per row; None: up to four, as square as possible.
        cell_width: pixels.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: there is no panel, or a picture is not (h, w, 3) uint8.
    """
    if not panels:
        raise ValueError("titled_grid needs at least one panel")
    for title, picture in panels:
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8 or picture.size == 0:
            raise ValueError(f"panel {title!r} must be (h, w, 3) uint8; got {picture.shape} {picture.dtype}")
    columns = min(len(panels), columns or min(4, int(np.ceil(np.sqrt(len(panels))))))
    margin = max(4, cell_width // 32)
    scale = max(cell_width / 320, 0.6) * 0.5
    title_height = cv2.getTextSize("Ag", FONT, scale, 1)[0][1] + margin
    pictures = [_fit(picture, cell_width, cell_width * 3 // 2) for _, picture in panels]
    rows = [range(start, min(start + columns, len(panels))) for start in range(0, len(panels), columns)]
    heights = [max(pictures[i].shape[0] for i in row) for row in rows]
    shape = (margin + sum(h + title_height + 2 * margin for h in heights), margin + columns * (cell_width + margin), 3)
    grid = np.full(shape, PAPER, np.uint8)
    top = margin
    for row, height in zip(rows, heights):
        for column, index in enumerate(row):
            picture, left = pictures[index], margin + column * (cell_width + margin)
            title = _shorten(panels[index][0], scale, cell_width)
            cv2.putText(grid, title, (left, top + title_height - margin // 2), FONT, scale, INK, 1, cv2.LINE_AA)
            grid[top + title_height : top + title_height + picture.shape[0], left : left + picture.shape[1]] = picture
        top += height + title_height + 2 * margin
    return grid
