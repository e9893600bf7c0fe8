"""Masks that cover the whole image. N images, D masks, h x w cells of a predicted mask, H x W pixels."""

import math

import cv2
import torch
import torch.nn.functional as F

# Number of float pixels per chunk: 64 MiB.
CHUNK_PIXELS = 1 << 24


def rescore(scores: torch.Tensor, masks: torch.Tensor, threshold: float) -> torch.Tensor:
    """Multiply scores (..., D) by the mean probability inside their masks (..., D, h, w); 0 for an empty mask."""
    inside = (masks > threshold).to(masks.dtype)
    return scores * (masks * inside).sum((-2, -1)) / (inside.sum((-2, -1)) + 1e-6)


def masks_to_boxes(masks: torch.Tensor) -> torch.Tensor:
    """
    Tight boxes of boolean masks (D, H, W): (D, 4) float32 x1, y1, x2, y2. Unlike torchvision's, they end one beyond the
    last pixel, and the box of an empty mask is 0.
    """
    height, width = masks.shape[-2:]
    if len(masks) == 0:
        return torch.zeros((0, 4), device=masks.device)
    pixels = masks.view(torch.uint8)  # the maximum of bytes is several times faster than `any` of bool
    rows, columns = pixels.amax(2).bool(), pixels.amax(1).bool()

    def span(hits: torch.Tensor, size: int):
        positions = torch.arange(size, device=hits.device)
        first = torch.where(hits, positions, size).amin(1)
        last = torch.where(hits, positions + 1, 0).amax(1)
        return torch.minimum(first, last), last

    (x1, x2), (y1, y2) = span(columns, width), span(rows, height)
    return torch.stack([x1, y1, x2, y2], dim=1).float()


def resize_masks(masks: torch.Tensor, canvas: tuple, crop: tuple, size: tuple) -> torch.Tensor:
    """Resize probabilities (N, C, h, w) bilinearly to the canvas, crop the padding, resize to (N, C, *size)."""
    masks = F.interpolate(masks, canvas, mode="bilinear", align_corners=False)
    return F.interpolate(masks[..., : crop[0], : crop[1]], size, mode="bilinear", align_corners=False)


def resize_in_chunks(masks: torch.Tensor, canvas: tuple, crop: tuple, size: tuple, threshold: float) -> torch.Tensor:
    """
    `resize_masks`, then threshold, in chunks of about `CHUNK_PIXELS`.

    On a CPU only the part around the cells above the threshold is resized, because no other pixel can exceed it.

    Args:
        masks: (D, h, w) probabilities that cover the canvas.
        canvas: (H, W) of the padded input; crop: (H, W) of the input without padding; size: (H, W) of the output.
        threshold: pixels strictly above it are True.

    Returns:
        (D, *size) bool.
    """
    results = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
    scale = canvas[0] // masks.shape[-2]
    if masks.device.type == "cpu" and (masks.shape[-2] * scale, masks.shape[-1] * scale) == tuple(canvas):
        masks = masks.float()
        for result, mask, box in zip(results, masks, masks_to_boxes(masks > threshold).int().tolist()):
            if box[2] > box[0]:
                _resize_part(result, mask, box, scale, crop, threshold)
        return results
    pixels = max(canvas[0] * canvas[1], size[0] * size[1])
    step = max(1, CHUNK_PIXELS // pixels)
    for start in range(0, len(masks), step):
        chunk = resize_masks(masks[start : start + step, None].float(), canvas, crop, size)
        results[start : start + step] = chunk[:, 0] > threshold
    return results


def _resize_part(result: torch.Tensor, mask: torch.Tensor, box, scale: int, crop: tuple, threshold: float) -> None:
    """
    Resize one mask (h, w) into its result (H, W), which is False everywhere.

    Args:
        box: x1, y1, x2, y2 of the cells above the threshold. A pixel above it lies next to such a cell, and the second
            resize reads the pixel's neighbours, so two more cells on every side are enough.
        scale: input pixels per cell.
    """
    x1, y1 = max(box[0] - 2, 0), max(box[1] - 2, 0)
    part = mask[y1 : box[3] + 2, x1 : box[2] + 2]
    size = (part.shape[1] * scale, part.shape[0] * scale)
    part = torch.from_numpy(cv2.resize(part.contiguous().numpy(), size, interpolation=cv2.INTER_LINEAR))
    x1, y1 = x1 * scale, y1 * scale
    part = part[: max(crop[0] - y1, 0), : max(crop[1] - x1, 0)]  # empty if it lies in the padding
    if part.numel() == 0:
        return
    if tuple(result.shape) != tuple(crop):
        part, y1 = _resample(part, y1, crop[0], result.shape[0], 0)
        part, x1 = _resample(part, x1, crop[1], result.shape[1], 1)
    result[y1 : y1 + part.shape[0], x1 : x1 + part.shape[1]] = part > threshold


def _resample(part: torch.Tensor, start: int, source: int, target: int, dim: int):
    """
    Resample one axis bilinearly from ``source`` to ``target`` pixels, for a part that starts at pixel ``start``.

    Returns:
        the resampled part, and the target pixel at which it starts.
    """
    ratio = source / target
    stop = start + part.shape[dim]
    first = max(math.floor((start - 0.5) / ratio - 0.5), 0)
    last = min(math.ceil((stop + 0.5) / ratio - 0.5) + 1, target)
    position = ((torch.arange(first, last) + 0.5) * ratio - 0.5).clamp(min=0)
    low = position.floor().long()
    weight = (position - low).unsqueeze(1 - dim)
    near, far = (part.index_select(dim, (i - start).clamp(0, stop - start - 1)) for i in (low, low + 1))
    return torch.lerp(near, far, weight), first
