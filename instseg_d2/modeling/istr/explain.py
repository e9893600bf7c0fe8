"""
Pictures that explain ISTR's refinement: boxes and masks of some queries after each head.

q queries, S side of a decoded mask, H x W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes

from ...visualization.overlay import draw_layers


def explain_image(image: np.ndarray, steps: Sequence, tags: Sequence[str], mask_threshold: float) -> list:
    """
    Args:
        image: (H, W, 3) uint8, RGB, network input size.
        steps: (boxes (q, 4) in input pixels, masks (q, 1, S, S)) after each head.
        tags: q labels for the last picture.

    Returns:
        [(title, RGB uint8 picture)], one per head; a query keeps its colour.
    """
    size = image.shape[:2]
    panels = []
    for i, (boxes, masks) in enumerate(steps):
        clipped = Boxes(boxes.float().clone())
        clipped.clip(size)
        kept = clipped.nonempty()
        pasted = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
        if kept.any():
            pasted[kept] = paste_masks_in_image(masks[kept, 0].float(), clipped[kept], size, mask_threshold)
        shown = tags if i == len(steps) - 1 else [""] * len(tags)
        drawn = draw_layers(image, list(pasted.cpu().numpy()), clipped.tensor.cpu().numpy(), shown)
        panels.append((f"head {i + 1}", drawn))
    return panels
