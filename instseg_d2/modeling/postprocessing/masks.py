"""Whole-image masks. D masks, H x W pixels."""

import torch
import torch.nn.functional as F

# Float pixels that exist at a time: 16 Mi are 64 MiB.
CHUNK_PIXELS = 1 << 24


def boxes_of_masks(masks: torch.Tensor) -> torch.Tensor:
    """
    Tight boxes of boolean masks (D, H, W): (D, 4) float32 x1, y1, x2, y2, the last two one beyond the last pixel;
    zeros for an empty mask.
    """
    height, width = masks.shape[-2:]
    rows, columns = masks.any(2), masks.any(1)

    def span(hits: torch.Tensor, size: int):
        positions = torch.arange(size, device=hits.device)
        first = torch.where(hits, positions, size).amin(1)
        last = torch.where(hits, positions + 1, 0).amax(1)
        return torch.minimum(first, last), last

    if len(masks) == 0:
        return torch.zeros((0, 4), device=masks.device)
    (x1, x2), (y1, y2) = span(columns, width), span(rows, height)
    return torch.stack([x1, y1, x2, y2], dim=1).float()


def resize_in_chunks(masks: torch.Tensor, canvas: tuple, crop: tuple, size: tuple, threshold: float) -> torch.Tensor:
    """
    Probabilities -> boolean masks: bilinear to the padded canvas, cropped, bilinear to the output size, compared.

    Args:
        masks: (D, h, w) probabilities that cover the canvas.
        canvas: (H, W) of the padded input; crop: (H, W) of the input without padding; size: (H, W) of the output.
        threshold: pixels strictly above it are True.

    Returns:
        (D, *size) bool. Only a bounded number of float pixels exists at a time.
    """
    results = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
    pixels = max(canvas[0] * canvas[1], size[0] * size[1])
    step = max(1, CHUNK_PIXELS // pixels)
    for start in range(0, len(masks), step):
        chunk = F.interpolate(masks[start : start + step, None].float(), canvas, mode="bilinear", align_corners=False)
        chunk = F.interpolate(chunk[..., : crop[0], : crop[1]], size, mode="bilinear", align_corners=False)
        results[start : start + step] = chunk[:, 0] > threshold
    return results
