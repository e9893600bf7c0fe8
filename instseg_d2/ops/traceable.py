"""
The operators as graphs of standard operations of fixed sizes, for export. Without checks: these read values.

The letters are those of the operators.
"""

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align

__all__ = ["assemble_instances", "blend_masks", "is_exporting", "mask_prob"]

is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)  # before PyTorch 2.7


def blend_masks(
    bases: Tensor,
    boxes: Tensor,
    batch_index: Tensor,
    attention: Tensor,
    resolution: int,
    spatial_scale: float,
    mode: str,
) -> Tensor:
    """`ops.blend_masks` of one mask a box: RoIAlign, resizing, softmax, weighted sum. ``mode``: its ``top_interp``."""
    far = torch.full_like(boxes, -4.0 / spatial_scale)
    boxes = torch.where(boxes.isfinite().all(1, keepdim=True), boxes, far)
    rois = torch.cat([batch_index[:, None].to(boxes.dtype), boxes], dim=1)
    crops = roi_align(bases, rois, resolution, spatial_scale, sampling_ratio=1, aligned=True)
    align_corners = False if mode == "bilinear" else None
    weights = F.interpolate(attention, (resolution, resolution), mode=mode, align_corners=align_corners).softmax(1)
    return (crops * weights).sum(1)


def mask_prob(pixel_embeddings: Tensor, proposal_embeddings: Tensor, margins: Tensor) -> Tensor:
    """
    `ops.mask_prob` over whole maps: (N, M, H, W) for M objects of each image.

    One product of matrices, from -m (p - q)^2 = -m p^2 + 2 m q p - m q^2 in each dimension. The embeddings are centred
    first, so that the squares stay near the size of the differences.

    Args:
        pixel_embeddings: (N, D, H, W).
        proposal_embeddings: (N, M, D).
        margins: (N, M, 1) or (N, M, D).
    """
    centre = proposal_embeddings.mean(1, keepdim=True)  # (N, 1, D)
    pixels = pixel_embeddings.flatten(2) - centre.transpose(1, 2)
    objects = proposal_embeddings - centre
    margins = margins.expand_as(objects)
    factors = torch.cat([-margins, 2 * margins * objects], dim=2)
    values = factors @ torch.cat([pixels.square(), pixels], dim=1) - (margins * objects.square()).sum(2, keepdim=True)
    return values.unflatten(2, tuple(pixel_embeddings.shape[-2:]))


def assemble_instances(
    score_maps: Tensor, windows: Tensor, mask_size: int, grid: int, outside: float = -10.0
) -> Tensor:
    """`ops.assemble_instances` as one gather."""
    height, width = score_maps.shape[-2:]
    cells = torch.arange(mask_size, device=windows.device)
    part = cells * grid // mask_size
    y = windows[:, 1, None].clamp(-mask_size, height) + cells
    x = windows[:, 2, None].clamp(-mask_size, width) + cells
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    plane = windows[:, 0, None, None] * grid**2 + part[:, None] * grid + part
    row = plane * height + y.clamp(0, height - 1)[:, :, None]
    values = score_maps.flatten()[(row * width + x.clamp(0, width - 1)[:, None, :]).flatten()]
    return torch.where(inside, values.view(inside.shape), outside)
