"""Maps in colour, heat maps, grids: values against OpenCV's colour map and hand-derived layouts."""

import cv2
import numpy as np
import pytest

from instseg_d2.visualization import colorize, overlay_heatmap, titled_grid


def _viridis(value):
    return cv2.applyColorMap(np.array([[value]], np.uint8), cv2.COLORMAP_VIRIDIS)[0, 0, ::-1].tolist()


def test_colorize_maps_extremes_to_the_ends_of_the_colormap():
    colors = colorize(np.array([[-2.0, 0.0, 2.0]]))
    assert colors.dtype == np.uint8
    assert colors[0].tolist() == [_viridis(0), _viridis(128), _viridis(255)]


def test_colorize_clips_to_given_limits_and_marks_nan():
    colors = colorize(np.array([[-9.0, 1.0, 9.0, np.nan, np.inf, -np.inf]]), vmin=0, vmax=1)
    assert colors[0].tolist() == [_viridis(0), _viridis(255), _viridis(255), [128] * 3, _viridis(255), _viridis(0)]


def test_colorize_constant_boolean_empty_and_wrong_maps():
    assert (colorize(np.full((2, 3), 7.0)) == _viridis(0)).all()
    assert colorize(np.array([[False, True]]))[0].tolist() == [_viridis(0), _viridis(255)]
    assert (colorize(np.full((1, 2), np.nan)) == 128).all()
    assert colorize(np.zeros((0, 4))).shape == (0, 4, 3)
    with pytest.raises(ValueError, match="two dimensions"):
        colorize(np.zeros((1, 2, 3)))


def test_overlay_heatmap_resizes_and_blends():
    image = np.full((40, 60, 3), 200, np.uint8)
    assert (overlay_heatmap(image, np.eye(3), alpha=0) == image).all()
    full = overlay_heatmap(image, np.array([[0.0, 1.0]]), alpha=1)
    assert full.shape == image.shape
    assert full[20, 0].tolist() == _viridis(0)
    assert full[20, 59].tolist() == _viridis(255)
    half = overlay_heatmap(image, np.array([[0.0, 1.0]]), alpha=0.5)
    np.testing.assert_allclose(half[20, 59], (np.array(_viridis(255)) + 200) / 2, atol=1)


def test_grid_places_scaled_pictures_below_their_titles():
    red, green = np.zeros((50, 100, 3), np.uint8), np.zeros((200, 100, 3), np.uint8)
    red[..., 0], green[..., 1] = 255, 255
    grid = titled_grid([("red", red), ("green", green), ("", red)], columns=2, cell_width=160)
    is_red = (grid == (255, 0, 0)).all(axis=2)
    is_green = (grid == (0, 255, 0)).all(axis=2)
    assert is_red.sum() == 2 * 160 * 80  # 100 x 50 to the cell's width
    assert is_green.sum() == 120 * 240  # 100 x 200 limited to 240 in height
    rows, columns = np.nonzero(is_red)
    first = rows < np.nonzero(is_green)[0].max()
    assert columns.max() - columns.min() == 159
    assert rows[first].min() == np.nonzero(is_green)[0].min()  # tops are aligned
    title = grid[: rows.min(), :160]
    assert (title < 100).any()  # the title is there, dark on white
    assert (grid[[0, -1]] == 255).all()
    assert (grid[:, [0, -1]] == 255).all()


def test_grid_keeps_the_cells_of_small_maps_and_cuts_long_titles():
    small = np.zeros((2, 2, 3), np.uint8)
    small[0, 0] = 255
    grid = titled_grid([("a title far too long for a cell of this width " * 3, small)], cell_width=100)
    picture = grid[-105:-8, 4:104]
    assert set(np.unique(picture[:, 10:90])) <= {0, 255}  # nearest: no value between
    assert (grid[:, 104:] == 255).all()


def test_grid_refuses_nothing_and_other_pictures():
    with pytest.raises(ValueError, match="at least one"):
        titled_grid([])
    with pytest.raises(ValueError, match="'float'"):
        titled_grid([("float", np.zeros((3, 3, 3)))])
