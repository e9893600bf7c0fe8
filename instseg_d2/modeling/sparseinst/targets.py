"""Training targets of SparseInst. M objects of an image, H x W pixels, h x w cells of the predicted masks."""

import torch
import torch.nn.functional as F
from detectron2.structures import Instances

from ..ground_truth import canvas_masks


def resized_targets(instances: Instances, canvas: tuple, size: tuple) -> torch.Tensor:
    """
    Pad the objects' masks to the canvas and resize them bilinearly, without thresholding: (M, h, w) float32.

    Args:
        canvas: (H, W) of the padded batch.
        size: (h, w).
    """
    masks = canvas_masks([instances], canvas)
    # At a quarter of the size the bilinear value is the mean of the middle 2 x 2 of 4 x 4 pixels: no full-size floats.
    if (size[0] * 4, size[1] * 4) == tuple(canvas):
        return sum(masks[:, i::4, j::4].float() for i in (1, 2) for j in (1, 2)) / 4
    return F.interpolate(masks[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]


def centres_of_mass(masks: torch.Tensor) -> torch.Tensor:
    """Masks (M, h, w) -> (M, 2) x and y, from -1 at the first cell to 1 at the last."""
    xs, ys = (torch.linspace(-1, 1, n, device=masks.device, dtype=masks.dtype) for n in masks.shape[:0:-1])
    mass = masks.sum((1, 2)).clamp(min=1e-6)
    return torch.stack([(masks.sum(1) * xs).sum(1), (masks.sum(2) * ys).sum(1)], dim=1) / mass[:, None]


def shares_of_cells(instances: Instances, canvas: tuple, size: tuple) -> torch.Tensor:
    """
    The share of each cell that a mask covers: (M, h, w) float32. Unlike in `resized_targets`, no pixel is left out.

    Args:
        canvas, size: see `resized_targets`.
    """
    masks = canvas_masks([instances], canvas)
    height, width = canvas[0] // size[0], canvas[1] // size[1]
    if (size[0] * height, size[1] * width) == tuple(canvas):
        cells = masks.view(len(masks), size[0], height, size[1], width)
        return cells.sum((2, 4), dtype=torch.float32) / (height * width)
    return F.adaptive_avg_pool2d(masks[:, None].float(), size)[:, 0]
