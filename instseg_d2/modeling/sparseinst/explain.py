"""
Pictures that explain SparseInst's masks: activation map and mask of the best detections (figures 1 and 4 of the paper).

D detections, G groups, h x w cells of a mask, H x W pixels.
"""

import cv2
import numpy as np
import torch

from ...visualization import overlay_heatmap


def _on_image(values: torch.Tensor, canvas: tuple, size: tuple) -> np.ndarray:
    """Resize a map to the padded canvas (H, W) and crop it to the unpadded image (H, W)."""
    resized = cv2.resize(values.float().cpu().numpy(), canvas[::-1], interpolation=cv2.INTER_LINEAR)
    return resized[: size[0], : size[1]]


def explain_image(image: np.ndarray, detections, activation_maps: torch.Tensor, canvas: tuple, max_instances: int):
    """
    Args:
        image: (H, W, 3) uint8, RGB, network input size.
        detections: Instances with scores and pred_masks (D, h, w) probabilities on the padded canvas.
        activation_maps: (D, G, H / 8, W / 8); the mean over the groups is drawn.
        canvas: (H, W) of the padded input.

    Returns:
        [(title, RGB uint8 picture)]: two pictures for each of the ``max_instances`` best detections.
    """
    panels = []
    for rank, i in enumerate(detections.scores.argsort(descending=True)[:max_instances].tolist()):
        title = f"#{rank + 1}, {float(detections.scores[i]):.0%}"
        activation = _on_image(activation_maps[i].mean(0), canvas, image.shape[:2])
        mask = _on_image(detections.pred_masks[i], canvas, image.shape[:2])
        panels.append((f"{title}: activation map", overlay_heatmap(image, activation, 0.7)))
        panels.append((f"{title}: mask", overlay_heatmap(image, mask, 0.6, 0, 1)))
    return panels
