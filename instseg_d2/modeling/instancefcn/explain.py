"""
Pictures that explain InstanceFCN's masks: the score maps, and how masks are assembled from them (figures 1 and 4 of the
paper). D segments, k grid, m mask size, h x w cells of the score maps, H x W pixels.
"""

import cv2
import numpy as np
import torch
from detectron2.layers import paste_masks_in_image

from ...visualization import colorize, overlay_heatmap

GAP, WHITE = 3, 255
WINDOW_PIXELS = 224
SEGMENTS_IN_MAP = 100


def _objectness_map(image: np.ndarray, segments) -> np.ndarray:
    """The maximum of objectness x mask probability over the best segments, drawn over the image."""
    best = segments[:SEGMENTS_IN_MAP]
    size = tuple(image.shape[:2])
    if len(best) == 0:
        return overlay_heatmap(image, np.zeros(size, np.float32), 0.6, 0, 1)
    soft = paste_masks_in_image(best.pred_masks, best.windows, size, threshold=-1).float() / 255  # -1: not binarised
    product = soft * best.objectness_logits.sigmoid()[:, None, None]
    return overlay_heatmap(image, product.amax(0).cpu().numpy(), 0.6, 0, 1)


def _score_map_grid(score_maps: torch.Tensor, grid: int) -> np.ndarray:
    """The maps (k * k, h, w) as probabilities, arranged by relative position."""
    maps = [colorize(x, 0, 1) for x in score_maps.float().sigmoid().cpu().numpy()]
    maps = [cv2.copyMakeBorder(x, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=(WHITE,) * 3) for x in maps]
    return np.vstack([np.hstack(maps[row * grid : (row + 1) * grid]) for row in range(grid)])[:-GAP, :-GAP]


def _draw_grid(picture: np.ndarray, grid: int, size: int) -> np.ndarray:
    """Draw lines in a window's picture between the parts that come from different score maps."""
    picture = np.ascontiguousarray(picture)
    for part in range(1, grid):
        at = round(-(-part * size // grid) * WINDOW_PIXELS / size)
        cv2.line(picture, (at, 0), (at, WINDOW_PIXELS - 1), (WHITE,) * 3, 1)
        cv2.line(picture, (0, at), (WINDOW_PIXELS - 1, at), (WHITE,) * 3, 1)
    return picture


def _draw_assembly(image: np.ndarray, window: np.ndarray, probabilities: np.ndarray, grid: int) -> np.ndarray:
    """The window of the image and its mask of k x k blocks, side by side."""
    x1, y1, x2, y2 = window
    to_window = np.float32([[x2 - x1, 0, x1], [0, y2 - y1, y1]]) / WINDOW_PIXELS
    to_window[:, 2] *= WINDOW_PIXELS
    crop = cv2.warpAffine(
        image, to_window, (WINDOW_PIXELS, WINDOW_PIXELS), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    )
    blocks = cv2.resize(colorize(probabilities, 0, 1), (WINDOW_PIXELS, WINDOW_PIXELS), interpolation=cv2.INTER_NEAREST)
    gap = np.full((WINDOW_PIXELS, GAP, 3), WHITE, np.uint8)
    size = len(probabilities)
    return np.hstack([_draw_grid(crop, grid, size), gap, _draw_grid(blocks, grid, size)])


def explain_image(image: np.ndarray, segments, maps: list, grid: int, max_instances: int) -> list:
    """
    Args:
        image: (H, W, 3) uint8, RGB, network input size.
        segments: Instances in input pixels with scores, objectness_logits, pred_masks (D, m, m) probabilities,
            windows and scale_index, best first.
        maps: for each scale, the size (H, W) of the image without padding and score maps (k * k, h, w) with padding.
        grid: k.

    Returns:
        [(title, RGB uint8 picture)]: objectness x mask probability, the score maps of the best segments' scales, and
        the assembled mask of each of these segments.
    """
    panels = [("objectness x mask probability", _objectness_map(image, segments))]
    best = segments[:max_instances]
    for index in best.scale_index.unique().tolist():
        (height, width), score_maps = maps[index]
        panels.append((f"{grid} x {grid} score maps at {width} x {height}", _score_map_grid(score_maps, grid)))
    for i in range(len(best)):
        window = best.windows.tensor[i].cpu().numpy()
        probabilities = best.pred_masks[i].cpu().numpy()
        title = f"#{i + 1}, {float(best.scores[i]):.0%}: window and assembled mask"
        panels.append((title, _draw_assembly(image, window, probabilities, grid)))
    return panels
