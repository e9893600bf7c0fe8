"""
Pictures that explain BlendMask's masks: the bases over the image, and the attention and blended mask of the best
detections (figures 1 and 3 of the paper).

D detections, K bases (the paper's letter), A attention size, R mask resolution, h x w cells of the bases, H x W pixels.
"""

import cv2
import numpy as np
import torch

from ...visualization import colorize, overlay_heatmap


def _heatmap_in_box(image: np.ndarray, box, probabilities: np.ndarray) -> np.ndarray:
    """Draw the mask probabilities (R, R) of a box over the image, cropped to the box and a margin."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = (round(float(v)) for v in box)
    x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
    canvas = np.zeros((height, width), np.float32)
    resized = cv2.resize(probabilities, (x2 - x1, y2 - y1), interpolation=cv2.INTER_LINEAR)
    left, top = max(x1, 0), max(y1, 0)
    part = resized[top - y1 : max(height - y1, 0), left - x1 : max(width - x1, 0)]
    canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
    drawn = overlay_heatmap(image, canvas, 0.6, 0, 1)
    cv2.rectangle(drawn, (x1, y1), (x2 - 1, y2 - 1), (255, 255, 255), 1)
    margin = max(4, (x2 - x1) // 4, (y2 - y1) // 4)
    crop = drawn[max(y1 - margin, 0) : y2 + margin, max(x1 - margin, 0) : x2 + margin]
    return crop if crop.size else drawn


def _attention_strip(weights: np.ndarray) -> np.ndarray:
    """The attention to each basis (K, A, A), side by side on one colour scale."""
    cell = max(1, 112 // weights.shape[-1])
    low, high = min(0.0, float(weights.min())), max(1.0, float(weights.max()))
    maps = [np.kron(colorize(a, low, high), np.ones((cell, cell, 1), np.uint8)) for a in weights]
    gap = np.full((maps[0].shape[0], 4, 3), 255, np.uint8)
    return np.hstack([part for a in maps for part in (a, gap)][:-1])


def explain_image(image: np.ndarray, detections, bases: torch.Tensor, max_instances: int) -> list:
    """
    Args:
        image: (H, W, 3) uint8, RGB, network input size.
        detections: Instances in input pixels with pred_boxes, scores, pred_masks (D, 1, R, R) and, except for
            fcis, attention (D, K, A, A); best first.
        bases: (K, h, w), without padding.

    Returns:
        [(title, RGB uint8 picture)]: K bases, then two pictures (one without attention) per instance.
    """
    bases = bases.float().cpu().numpy()
    panels = [(f"basis {k}", overlay_heatmap(image, base, 0.7)) for k, base in enumerate(bases)]
    for i in range(min(max_instances, len(detections))):
        box = detections.pred_boxes.tensor[i].cpu().numpy()
        title = f"#{i + 1}, {float(detections.scores[i]):.0%}"
        if detections.has("attention"):
            weights = detections.attention[i].float().cpu().numpy()
            panels.append((f"{title}: attention to the bases", _attention_strip(weights)))
        mask = detections.pred_masks[i, 0].float().cpu().numpy()
        panels.append((f"{title}: blended mask", _heatmap_in_box(image, box, mask)))
    return panels
