"""
Assigns the locations of FCOS to objects.

N images, M objects, X rows (see layers/locations.py), P positive rows, Q candidate pairs, L levels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Optional

import torch

from ...layers import LocationGrid


@dataclass
class Assignment:
    """
    Positive locations, ordered by row (level, image, y, x).

    Attributes:
        rows: (P,) int64.
        objects: (P,) int64 index into the objects of the batch, image after image.
        ltrb: (P, 4) distances to the sides of the object's box, divided by the level's stride.
        centerness: (P,) in [0, 1].
    """

    rows: torch.Tensor
    objects: torch.Tensor
    ltrb: torch.Tensor
    centerness: torch.Tensor


def centerness(ltrb: torch.Tensor) -> torch.Tensor:
    """(P, 4) distances l, t, r, b inside a box -> (P,) centerness (FCOS, eq. 3)."""
    horizontal, vertical = ltrb[:, 0::2], ltrb[:, 1::2]
    ratio = horizontal.amin(1) / horizontal.amax(1) * (vertical.amin(1) / vertical.amax(1))
    return ratio.sqrt()


def _window_pairs(grid: LocationGrid, boxes, radius: float):
    """
    A fixed number of (object, cell) pairs per object, which include all cells within ``radius`` strides of the box
    centre. Cells outside the map are moved to its border.

    Returns:
        object, level, y, x (Q,), and whether the cell was inside the map (Q,) bool.
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    strides = grid.strides
    first = torch.floor((centers[:, None] - strides[:, None] // 2) / strides[:, None] - radius).long()  # (M, L, 2)
    shift = torch.arange(math.ceil(2 * radius) + 2, device=boxes.device)
    xs = first[..., 0, None] + shift  # (M, L, S)
    ys = first[..., 1, None] + shift
    num_objects, num_levels, size = xs.shape
    shape = (num_objects, num_levels, size, size)
    y, x = ys[..., :, None].expand(shape), xs[..., None, :].expand(shape)
    height, width = grid.heights[:, None, None], grid.widths[:, None, None]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    y, x = torch.minimum(y.clamp(min=0), height - 1), torch.minimum(x.clamp(min=0), width - 1)
    objects = torch.arange(num_objects, device=boxes.device)[:, None, None, None].expand(shape)
    levels = torch.arange(num_levels, device=boxes.device)[:, None, None].expand(shape)
    return tuple(values.flatten() for values in (objects, levels, y, x, inside))


def _all_pairs(grid: LocationGrid, images):
    """All (object, cell) pairs of an image: object, level, y, x (Q,)."""
    rows = torch.arange(grid.num_rows, device=images.device)
    level, image, y, x = grid.locate(rows)
    objects, cells = (images[:, None] == image).nonzero(as_tuple=True)
    return objects, level[cells], y[cells], x[cells]


def assign(
    grid: LocationGrid,
    boxes,
    images,
    size_ranges,
    *,
    center_sample: bool,
    radius: float,
    allowed: Optional[Callable] = None,
    inclusive: bool = False,
) -> Assignment:
    """
    Assign locations to objects (FCOS, section 3.1, and centre sampling as in the improved version).

    A location is positive for an object if it lies strictly inside the object's centre region and max(l, t, r, b) is in
    the level's range. The centre region is ``radius`` strides around the box centre, clipped to the box; without
    ``center_sample`` it is the box. A location inside several objects gets the smallest box, then the first.

    Args:
        boxes: (M, 4) float32 x1, y1, x2, y2 in pixels, image after image.
        images: (M,) int64, the image of each box.
        size_ranges: (L, 2) minimum and maximum of max(l, t, r, b), pixels, inclusive.
        radius: in strides of the level.
        allowed: optional condition, (objects (Q,), locations (Q, 2) x, y in pixels) -> (Q,) bool.
        inclusive: boxes include pixels x2 and y2, so their area is (w + 1)(h + 1).
    """
    if center_sample:
        objects, level, y, x, on_map = _window_pairs(grid, boxes, radius)
    else:
        objects, level, y, x = _all_pairs(grid, images)
    xy = grid.pixels(level, y, x)
    box = boxes[objects]
    ltrb = torch.cat([xy - box[:, :2], box[:, 2:] - xy], dim=1)
    if center_sample:
        center = (box[:, :2] + box[:, 2:]) / 2
        reach = (grid.strides[level] * radius)[:, None]
        low = torch.maximum(center - reach, box[:, :2])
        high = torch.minimum(center + reach, box[:, 2:])
        strictly_inside = ((xy > low) & (xy < high)).all(1) & on_map
    else:
        strictly_inside = ltrb.amin(1) > 0
    longest = ltrb.amax(1)
    in_range = (longest >= size_ranges[level, 0]) & (longest <= size_ranges[level, 1])
    keep = strictly_inside & in_range
    if allowed is not None:
        keep &= allowed(objects, xy)
    # The pairs that do not fit go to an extra row: dropping them would make the host wait for the device.
    rows = torch.where(keep, grid.row(level, images[objects], y, x), grid.num_rows)
    sides = box[:, 2:] - box[:, :2] + float(inclusive)
    area = sides[:, 0] * sides[:, 1]
    winners = _smallest_object(rows, objects, area, grid.num_rows, len(boxes))
    rows = (winners < len(boxes)).nonzero()[:, 0]
    objects = winners[rows]
    level, _, y, x = grid.locate(rows)
    xy, box = grid.pixels(level, y, x), boxes[objects]
    ltrb = torch.cat([xy - box[:, :2], box[:, 2:] - xy], dim=1)
    return Assignment(rows, objects, ltrb / grid.strides[level][:, None], centerness(ltrb))


def _smallest_object(rows, objects, area, num_rows: int, num_objects: int):
    """The smallest object of each row, of equal ones the first: (X,) int64, ``num_objects`` for none."""
    smallest = area.new_full((num_rows + 1,), math.inf).scatter_reduce_(0, rows, area, "amin")
    objects = torch.where(area == smallest[rows], objects, num_objects)
    return objects.new_full((num_rows + 1,), num_objects).scatter_reduce_(0, rows, objects, "amin")[:-1]
