"""Masks of boxes, pasted into images. D masks, R x R their resolution, H x W the image."""

import torch

# Pixels of one chunk's float canvas: 16 Mi floats are 64 MiB.
_CHUNK_PIXELS = 1 << 24


def _weights(low: torch.Tensor, high: torch.Tensor, resolution: int, start: int, stop: int) -> torch.Tensor:
    """
    Bilinear weights of the R samples of a box side for the pixel centres start .. stop - 1, zero outside the box.

    Args:
        low, high: (D,) ends of the box on this axis, pixels.

    Returns:
        (D, stop - start, R); rows sum to 1 inside.
    """
    pixels = torch.arange(start, stop, device=low.device, dtype=torch.float32) + 0.5
    position = (pixels - low[:, None]) / (high - low)[:, None] * resolution - 0.5
    samples = torch.arange(resolution, device=low.device, dtype=torch.float32)
    return (1 - (position[..., None] - samples).abs_()).clamp_(min=0)


def paste_masks(masks: torch.Tensor, boxes: torch.Tensor, image_size, threshold: float = 0.5) -> torch.Tensor:
    """
    Resize each mask bilinearly to its box and threshold it in the image.

    The same as Detectron2's `paste_masks_in_image` (zero outside the samples), as two small matrix products instead
    of a sampling grid. Float pixels exist for one chunk of bounded size at a time: for the part of the image that one
    box covers on a CPU, for the whole image of as many masks as fit on a GPU.

    Args:
        masks: (D, R, R) probabilities.
        boxes: (D, 4) x1, y1, x2, y2 in image pixels, of positive width and height.
        image_size: (H, W).
        threshold: pixels of at least this probability are True.

    Returns:
        (D, H, W) bool.
    """
    height, width = image_size
    num_masks, resolution = masks.shape[0], masks.shape[-1]
    canvas = torch.zeros((num_masks, height, width), dtype=torch.bool, device=masks.device)
    if num_masks == 0:
        return canvas
    masks, boxes = masks.float(), boxes.float()
    if masks.device.type == "cpu":
        spans = torch.cat([boxes[:, :2].floor() - 1, boxes[:, 2:].ceil() + 1], dim=1).int()
        limit = torch.tensor([width, height, width, height], dtype=torch.int32)
        spans = torch.minimum(spans.clamp(min=0), limit).tolist()
        chunks = [(slice(i, i + 1), *span) for i, span in enumerate(spans)]
    else:
        size = max(1, _CHUNK_PIXELS // (height * width))
        chunks = [(slice(i, i + size), 0, 0, width, height) for i in range(0, num_masks, size)]
    for chunk, x0, y0, x1, y1 in chunks:
        rows = _weights(boxes[chunk, 1], boxes[chunk, 3], resolution, y0, y1)
        columns = _weights(boxes[chunk, 0], boxes[chunk, 2], resolution, x0, x1)
        canvas[chunk, y0:y1, x0:x1] = rows @ masks[chunk] @ columns.transpose(1, 2) >= threshold
    return canvas
