"""
Pictures that explain EmbedMask's masks: the pixel embedding in colours, and for the best detections each pixel's
distance from the proposal, the margin and the mask.

D detections, E embedding dimensions, h x w cells of the pixel embedding, H x W pixels.
"""

import math

import cv2
import numpy as np
import torch

from ...visualization import overlay_heatmap


def embedding_colors(embedding: torch.Tensor) -> np.ndarray:
    """The first three principal components of an embedding (E, h, w) as RGB: (h, w, 3) uint8."""
    points = embedding.flatten(1).T.double()
    points = points - points.mean(0)
    _, directions = torch.linalg.eigh(points.T @ points)
    colors = torch.nn.functional.pad(points, (0, max(0, 3 - points.shape[1])))
    colors[:, : points.shape[1]] = points @ directions.flip(1)
    colors = colors[:, :3]
    low, high = (torch.quantile(colors[:: max(1, len(colors) // 100_000)], q, dim=0) for q in (0.01, 0.99))
    colors = ((colors - low) / (high - low).clamp(min=1e-12)).clamp(0, 1) * 255
    return colors.round().byte().view(*embedding.shape[1:], 3).cpu().numpy()


def _margin_bars(margins: torch.Tensor) -> np.ndarray:
    """One bar per margin (1 or E): the distance at which the probability is 0.5, on a scale up to at least 4."""
    radii = (math.log(2) / margins.double()).sqrt().clamp(max=1e6).tolist()
    height, width, top = 112, 20, max(4.0, *radii)
    picture = np.full((height, width * len(radii) + 4, 3), 255, np.uint8)
    for i, radius in enumerate(radii):
        level = height - 1 - round((height - 1) * radius / top)
        cv2.rectangle(picture, (4 + i * width, level), (i * width + width - 1, height - 1), (70, 110, 180), cv2.FILLED)
    return picture


def explain_image(image: np.ndarray, stride: int, detections, pixels, max_instances: int) -> list:
    """
    Args:
        image: (H, W, 3) uint8, RGB, network input size.
        stride: stride of the pixel embedding, pixels.
        detections: Instances in input pixels with scores, masks (`WindowMasks`), embeddings (D, E) and margins
            (D, 1 or E), best first.
        pixels: (E, h, w) pixel embedding, with padding.

    Returns:
        [(title, RGB uint8 picture)]: the embedding, then three pictures per instance.
    """
    height, width = (-(-side // stride) for side in image.shape[:2])
    pixels = pixels[:, :height, :width].float()
    colors = cv2.resize(embedding_colors(pixels), image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    panels = [("pixel embedding", colors)]
    count = min(max_instances, len(detections))
    maps = detections.masks[:count].dense()[:, :height, :width]
    maps = maps.exp() if detections.masks.fill < 0 else maps
    for i in range(count):
        title = f"#{i + 1}, {float(detections.scores[i]):.0%}"
        distance = (pixels - detections.embeddings[i, :, None, None]).square().sum(0).sqrt()
        panels += [
            (f"{title}: distance", overlay_heatmap(image, distance.cpu().numpy(), 0.7)),
            (f"{title}: half at this distance", _margin_bars(detections.margins[i])),
            (f"{title}: mask", overlay_heatmap(image, maps[i].cpu().numpy(), 0.6, 0, 1)),
        ]
    return panels
