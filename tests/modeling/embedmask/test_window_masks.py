"""Masks inside windows: the resized part equals the resized whole map, in any order, size and number of chunks."""

import pytest
import torch
import torch.nn.functional as F

from instseg_d2.modeling.embedmask import window_masks
from instseg_d2.modeling.embedmask.window_masks import (
    WindowMasks,
    detection_windows,
    training_windows,
    window_cells,
    window_sides,
)


def random_masks(count, height, width, fill, seed=0):
    """Windows of all sizes, some empty, on a shared buffer with foreign values in front."""
    generator = torch.Generator().manual_seed(seed)
    limit = torch.tensor([width, height])
    corners = (torch.rand(count, 2, 2, generator=generator) * (limit + 1)).long().sort(1).values
    windows = corners.flatten(1)
    windows[0] = torch.tensor([0, 0, width, height])
    windows[1, 2] = windows[1, 0]
    windows[2, 3] = windows[2, 1] - 1
    cells = window_sides(windows).prod(1)
    values = torch.randn(7 + int(cells.sum()), generator=generator)
    return WindowMasks(values, 7 + cells.cumsum(0) - cells, windows, (height, width), fill)


def naive_dense(masks):
    maps = torch.full((len(masks), *masks.size), masks.fill)
    for mask, start, (x1, y1, x2, y2) in zip(maps, masks.starts.tolist(), masks.windows.tolist()):
        for y in range(y1, y2):
            for x in range(x1, x2):
                mask[y, x] = masks.values[start + (y - y1) * (x2 - x1) + x - x1]
    return maps


@pytest.mark.parametrize(("packed", "chunk"), [(False, 0), (True, 1 << 19), (True, 1000)])
@pytest.mark.parametrize(
    ("size", "crop"),
    [((96, 128), (96, 128)), ((96, 128), (90, 101)), ((50, 47), (50, 40)), ((13, 17), (13, 17)), ((300, 21), (1, 1))],
)
def test_resized_part_equals_the_resized_whole(size, crop, packed, chunk, monkeypatch):
    monkeypatch.setattr(window_masks, "CHUNK_PIXELS", chunk)
    masks = random_masks(12, 24, 32, -10.0)
    dense = naive_dense(masks)
    assert torch.equal(masks.dense(), dense)
    whole = F.interpolate(dense[:, None], size, mode="bilinear", align_corners=False)[:, 0, : crop[0], : crop[1]]
    assert torch.equal(masks.resize(size, crop, 0.1, packed), whole > 0.1)
    index = torch.tensor([5, 3, 3, 0, 1])
    assert torch.equal(masks[index].resize(size, crop, 0.1, packed), whole[index] > 0.1)
    assert masks[:0].resize(size, crop, 0.1, packed).shape == (0, *crop)


def test_many_masks_make_no_memory_peak(monkeypatch):
    """375 masks at 520 x 696 exist as bool alone: the float pixels at a time stay below the chunk."""
    seen = []
    original = window_masks.window_cells

    def recorded(windows, first, last):
        seen.append(last - first)
        return original(windows, first, last)

    monkeypatch.setattr(window_masks, "window_cells", recorded)
    corner = torch.stack([torch.arange(375) % 160, torch.arange(375) % 120], 1)
    windows = torch.cat([corner, corner + 8], 1)
    masks = WindowMasks(torch.rand(375 * 64), torch.arange(375) * 64, windows, (130, 174), 0.0)
    result = masks.resize((520, 696), (520, 696), 0.5, packed=True)
    assert torch.equal(result, masks.resize((520, 696), (520, 696), 0.5))
    assert result.shape == (375, 520, 696)
    assert max(seen) <= window_masks.CHUNK_PIXELS
    assert sum(seen[1:]) < 375 * 41 * 41


def test_cells_by_hand():
    windows = torch.tensor([[2, 1, 4, 3], [5, 5, 5, 9], [0, 0, 1, 2]])
    window, number, y, x = window_cells(windows, 1, 6)
    assert window.tolist() == [0, 0, 0, 2, 2]
    assert number.tolist() == [1, 2, 3, 0, 1]
    assert y.tolist() == [1, 2, 2, 0, 1]
    assert x.tolist() == [3, 2, 3, 0, 0]


def naive_window(low_x, low_y, high_x, high_y, width, height):
    """All cells (x, y) with lo <= c < hi."""
    return {(x, y) for x in range(width) for y in range(height) if low_x <= x < high_x and low_y <= y < high_y}


def cells(window):
    x1, y1, x2, y2 = window
    return {(x, y) for x in range(x1, x2) for y in range(y1, y2)}


def test_windows_hold_the_cells_of_their_definition():
    generator = torch.Generator().manual_seed(0)
    boxes = torch.rand(30, 4, generator=generator) * 90
    boxes[:, 2:] = torch.maximum(boxes[:, :2], boxes[:, 2:])
    boxes[:6] = (boxes[:6] / 4).round() * 4  # borders on cells
    size = (20, 24)
    training = training_windows(boxes, 4, 0.1, size).tolist()
    scalar = detection_windows(boxes, 4, False, size).tolist()
    whole = detection_windows(boxes, 4, True, size).tolist()
    for box, a, b, c in zip((boxes / 4).tolist(), training, scalar, whole):
        x1, y1, x2, y2 = box
        dx, dy = 0.1 * (x2 - x1) + 1, 0.1 * (y2 - y1) + 1
        assert cells(a) == naive_window(x1 - dx, y1 - dy, x2 + dx, y2 + dy, 24, 20)
        assert cells(b) == naive_window(x1 - 1, y1 - 1, x2 + 1, y2 + 1, 24, 20)
        assert cells(c) == naive_window(int(x1) - 2, int(y1) - 2, int(x2) + 2, int(y2) + 2, 24, 20)
    assert training_windows(boxes, 4, -1.0, size) is None
