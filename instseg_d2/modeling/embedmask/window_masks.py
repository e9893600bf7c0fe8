"""
Masks that vary inside windows and are constant outside.

M objects, D detections, P cells of all windows, h x w cells of the map, H x W pixels.
"""

from dataclasses import dataclass
from typing import Optional

import torch
import torch.nn.functional as F

from ... import ops

# Float pixels per chunk when all masks are resized together.
CHUNK_PIXELS = 1 << 19


def window_sides(windows: torch.Tensor) -> torch.Tensor:
    """Width and height (D, 2) of half-open windows (D, 4) x1, y1, x2, y2; both are 0 for an empty window."""
    sides = (windows[:, 2:] - windows[:, :2]).clamp(min=0)
    return sides * (sides > 0).all(1, keepdim=True)


def window_cells(windows: torch.Tensor, first: int, last: int):
    """
    Cells [first, last) of all windows (D, 4), numbered window after window, row after row.

    Returns:
        window, number inside the window, y, x: (last - first,) int64 each.
    """
    sides = window_sides(windows)
    ends = sides.prod(1).cumsum(0)
    number = torch.arange(first, last, device=windows.device)
    window = torch.searchsorted(ends, number, right=True)
    number = number - (ends - sides.prod(1))[window]
    width = sides[:, 0][window]
    row = number // width
    return window, number, row + windows[:, 1][window], number - row * width + windows[:, 0][window]


def training_windows(boxes: torch.Tensor, stride: int, padding: float, size: tuple):
    """
    The cells of each object's mask loss: its box, grown on each side by ``padding`` times its width or height and by
    one cell.

    Args:
        boxes: (M, 4), pixels.
        stride: pixels per cell.
        padding: below 0 for the whole map.
        size: (h, w) of the map.

    Returns:
        (M, 4) int64 x1, y1, x2, y2, half-open, or None for the whole map.
    """
    if padding < 0:
        return None
    boxes = boxes / stride
    reach = padding * (boxes[:, 2:] - boxes[:, :2])
    return ops.grown_windows(torch.cat([boxes[:, :2] - reach, boxes[:, 2:] + reach], dim=1), 1.0, *size)


def detection_windows(boxes: torch.Tensor, stride: int, whole_cells: bool, size: tuple) -> torch.Tensor:
    """
    The cells of each detection's mask: x1 - 1 <= x < x2 + 1 for a box in cells (v1, v2) or, with ``whole_cells`` (v3),
    int(x1) - 2 <= x < int(x2) + 2, and rows likewise. For arguments and result see `training_windows`.
    """
    boxes = boxes / stride
    if whole_cells:
        return ops.grown_windows(boxes.trunc(), 2.0, *size)
    return ops.grown_windows(boxes, 1.0, *size)


def _neighbours(cells: int, size: int, crop: int, device):
    """For the first ``crop`` of ``size`` pixels: the two nearest cells of each, and the weight of the second."""
    position = ((torch.arange(crop, device=device) + 0.5) * (cells / size) - 0.5).clamp(min=0)
    near = position.long()
    return near, (near + 1).clamp(max=cells - 1), position - near


@dataclass
class WindowMasks:
    """
    D float maps (h, w), stored as packed values inside a window; outside they are ``fill``.

    Attributes:
        values: (P,) values of these maps and perhaps of others.
        starts: (D,) int64 index of each map's first value; the others of its window follow, row after row.
        windows: (D, 4) int64 half-open cells x1, y1, x2, y2 inside the map.
        size: (h, w).
        fill: the value outside the windows.
    """

    values: torch.Tensor
    starts: torch.Tensor
    windows: torch.Tensor
    size: tuple
    fill: float

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index) -> "WindowMasks":
        return WindowMasks(self.values, self.starts[index], self.windows[index], self.size, self.fill)

    def dense(self) -> torch.Tensor:
        """The whole maps: (D, h, w)."""
        maps = self.values.new_full((len(self), *self.size), self.fill)
        window, number, y, x = window_cells(self.windows, 0, int(window_sides(self.windows).prod(1).sum()))
        maps[window, y, x] = self.values[self.starts[window] + number]
        return maps

    def _padded(self, reached: torch.Tensor):
        """
        The same maps, without values of others, in windows grown by one cell on each side inside the map. Also returns
        the number of ``reached`` pixels (D, 4), copied to the host together with the numbers of cells.
        """
        height, width = self.size
        low, high = self.windows[:, :2] - 1, self.windows[:, 2:] + 1
        x, y = (torch.stack([low[:, i], high[:, i]], dim=1).clamp(0, end) for i, end in enumerate((width, height)))
        grown = torch.stack([x, y], dim=2).flatten(1)
        counts = torch.stack([window_sides(windows).prod(1) for windows in (self.windows, grown, reached)])
        starts = counts[1].cumsum(0) - counts[1]
        total, grown_total, num_reached = counts.sum(1).tolist()
        values = self.values.new_full((grown_total,), self.fill)
        window, number, y, x = window_cells(self.windows, 0, total)
        left, top, right, _ = grown[window].unbind(1)
        values[starts[window] + (y - top) * (right - left) + x - left] = self.values[self.starts[window] + number]
        return WindowMasks(values, starts, grown, self.size, self.fill), num_reached

    def resize(self, size: tuple, crop: tuple, threshold: float, packed: Optional[bool] = None) -> torch.Tensor:
        """
        Resize the maps bilinearly (``align_corners=False``) to ``size`` (H, W), threshold and crop them.

        Only pixels near a window are computed. The others are ``fill``, which must not exceed the threshold.

        Args:
            crop: (H, W), at most ``size``.
            threshold: pixels strictly above it are True.
            packed: resize all masks together instead of one by one. Default: on a GPU.

        Returns:
            (D, *crop) bool.
        """
        masks = torch.zeros((len(self), *crop), dtype=torch.bool, device=self.values.device)
        if masks.numel() == 0:
            return masks
        axes = [_neighbours(*axis, masks.device) for axis in zip(self.size, size, crop)]
        (y0, y1, _), (x0, x1, _) = axes
        # A window reaches a pixel if it contains one of the pixel's two columns and one of its two rows of cells.
        left, top, right, bottom = self.windows.T.contiguous()
        edges = ((x1, left), (y1, top), (x0, right), (y0, bottom))
        reached = torch.stack([torch.searchsorted(cells, edge) for cells, edge in edges], dim=1)
        reached = reached * (window_sides(self.windows)[:, :1] > 0)
        write = self._resize_packed if (masks.is_cuda if packed is None else packed) else self._resize_each
        write(masks, reached, axes, threshold)
        return masks

    def _resize_each(self, masks: torch.Tensor, reached: torch.Tensor, axes, threshold: float) -> None:
        """Write the reached pixels (D, 4) mask by mask: on a CPU, many small tensors are faster than one big gather."""
        (y0, y1, wy), (x0, x1, wx) = axes
        rows = torch.cat([reached, self.windows, self.starts[:, None]], dim=1).tolist()
        for mask, (left, top, right, bottom, x, y, x2, y2, start) in zip(masks, rows):
            if left >= right or top >= bottom:
                continue
            part = self.values[start : start + (x2 - x) * (y2 - y)].view(y2 - y, x2 - x)
            part = F.pad(part, (1, 1, 1, 1), value=self.fill)
            weight = wx[left:right]
            near, far = (part[:, cells[left:right] - (x - 1)] for cells in (x0, x1))
            part = near * (1 - weight) + far * weight
            weight = wy[top:bottom, None]
            near, far = (part[cells[top:bottom] - (y - 1)] for cells in (y0, y1))
            mask[top:bottom, left:right] = near * (1 - weight) + far * weight > threshold

    def _resize_packed(self, masks: torch.Tensor, reached: torch.Tensor, axes, threshold: float) -> None:
        """Write the reached pixels (D, 4) of all masks together, in chunks."""
        (y0, y1, wy), (x0, x1, wx) = axes
        padded, total = self._padded(reached)
        row = padded.windows[:, 2] - padded.windows[:, 0]
        origin = padded.starts - padded.windows[:, 1] * row - padded.windows[:, 0]
        values = padded.values
        for first in range(0, total, CHUNK_PIXELS):
            mask, _, y, x = window_cells(reached, first, min(first + CHUNK_PIXELS, total))
            upper, lower = (origin[mask] + cells[y] * row[mask] for cells in (y0, y1))
            near, far, weight = x0[x], x1[x], wx[x]
            above = values[upper + near] * (1 - weight) + values[upper + far] * weight
            below = values[lower + near] * (1 - weight) + values[lower + far] * weight
            weight = wy[y]
            masks[mask, y, x] = above * (1 - weight) + below * weight > threshold
