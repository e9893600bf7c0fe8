"""The operators in plain PyTorch, with the signatures, results and errors of the compiled ones.

They are what the compiled ones are tested against, the path without the extension, and the deterministic one.
"""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import roi_align


def blend_masks(
    bases: Tensor,
    boxes: Tensor,
    batch_index: Tensor,
    attention: Tensor,
    *,
    box_index: Optional[Tensor] = None,
    resolution: int = 56,
    spatial_scale: float = 0.25,
    top_interp: str = "bilinear",
) -> Tensor:
    """See :func:`instseg_d2.ops.blend_masks`; keeps two tensors of P x K x R x R values for the gradients."""
    _check_blend_masks(bases, boxes, batch_index, attention, box_index, resolution)
    align_corners = None if is_nearest(top_interp) else False
    dtype = torch.promote_types(bases.dtype, attention.dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    boxes = boxes.detach().to(exact)
    outside = torch.full_like(boxes, -4.0 / spatial_scale)  # RoIAlign would read anywhere for a NaN
    boxes = torch.where(boxes.isfinite().all(dim=1, keepdim=True), boxes, outside)
    images = _in_range("batch_index", batch_index, bases.shape[0])
    rois = torch.cat([images[:, None].to(exact), boxes], dim=1)
    crops = roi_align(bases.to(exact), rois, resolution, spatial_scale, sampling_ratio=1, aligned=True)
    if box_index is not None:
        crops = crops.index_select(0, _in_range("box_index", box_index, boxes.shape[0]))
    size = (resolution, resolution)
    logits = F.interpolate(attention.to(exact), size=size, mode=top_interp, align_corners=align_corners)
    return (crops * logits.softmax(dim=1)).sum(dim=1).to(dtype)


def is_nearest(top_interp: str) -> bool:
    """Whether the attention of ``blend_masks`` is resized by the nearest cell instead of bilinearly."""
    if top_interp not in ("bilinear", "nearest"):
        raise ValueError(f'blend_masks: top_interp should be "bilinear" or "nearest", got {top_interp!r}')
    return top_interp == "nearest"


def _check_blend_masks(bases, boxes, batch_index, attention, box_index, resolution) -> None:
    def check(right: bool, should: str, tensor: Tensor) -> None:
        if not right:
            raise ValueError(f"blend_masks: {should}, got {tensor.dtype} of shape {tuple(tensor.shape)}")

    masks, count = attention.shape[0], boxes.shape[0]
    check(
        bases.dim() == 4 and min(bases.shape[1:]) > 0 and bases.is_floating_point(),
        "bases should be (N, K, H, W) with K, H and W above 0",
        bases,
    )
    check(
        boxes.dim() == 2 and boxes.shape[1] == 4 and boxes.is_floating_point(),
        "boxes should be (M, 4) floating-point pixels x1, y1, x2, y2",
        boxes,
    )
    check(
        batch_index.shape == (count,) and batch_index.dtype == torch.int64,
        f"batch_index should be int64 of shape (M,) = ({count},)",
        batch_index,
    )
    check(
        attention.dim() == 4 and attention.shape[1] == bases.shape[1] and 0 < attention.shape[2] == attention.shape[3],
        f"attention should be (P, K, A, A) with the K = {bases.shape[1]} of bases",
        attention,
    )
    if box_index is None:
        check(masks == count, f"without box_index, attention should have one entry per box ({count})", attention)
    else:
        check(
            box_index.shape == (masks,) and box_index.dtype == torch.int64,
            f"box_index should be int64 of shape (P,) = ({masks},)",
            box_index,
        )
    for name, tensor in {
        "boxes": boxes,
        "batch_index": batch_index,
        "attention": attention,
        "box_index": box_index,
    }.items():
        if tensor is not None and tensor.device != bases.device:
            raise ValueError(
                f"blend_masks: {name} is on {tensor.device}, it should be on the device of bases, {bases.device}"
            )
    if resolution < 1:
        raise ValueError(f"blend_masks: resolution should be from 1 to 4096, got {resolution}")


def _in_range(name: str, index: Tensor, limit: int) -> Tensor:
    """``index``, once it is known to lie in [0, limit): by a device-side assertion except on the CPU."""
    if index.device.type == "cpu":
        wrong = index[(index < 0) | (index >= limit)]
        if len(wrong):
            raise IndexError(f"blend_masks: {name} holds {int(wrong[0])}, it should be at least 0 and below {limit}")
    return torch.arange(limit, device=index.device).index_select(0, index)
