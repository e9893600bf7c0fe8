"""IoU losses of boxes given as distances (left, top, right, bottom) from a location. P pairs of boxes."""

from typing import Optional

import torch

from ...layers import check_choice

LTRB_LOSSES = ("giou", "iou", "linear_iou")


def ltrb_ious(pred: torch.Tensor, target: torch.Tensor, hull_epsilon: float = 0.0):
    """
    IoU and generalised IoU of boxes that share a location, both areas smoothed by 1 as in FCOS.

    Args:
        pred, target: (P, 4) non-negative distances l, t, r, b in one unit.
        hull_epsilon: added to the area of the hull, the smallest box around both.

    Returns:
        iou, giou: (P,) each; iou = (intersection + 1) / (union + 1), giou = iou - (hull - union) / hull.
    """
    area = (pred[:, 0] + pred[:, 2]) * (pred[:, 1] + pred[:, 3])
    target_area = (target[:, 0] + target[:, 2]) * (target[:, 1] + target[:, 3])
    low, high = torch.minimum(pred, target), torch.maximum(pred, target)
    intersection = (low[:, 0] + low[:, 2]) * (low[:, 1] + low[:, 3])
    hull = (high[:, 0] + high[:, 2]) * (high[:, 1] + high[:, 3]) + hull_epsilon
    union = area + target_area - intersection
    iou = (intersection + 1.0) / (union + 1.0)
    return iou, iou - (hull - union) / hull


def ltrb_iou_loss(
    pred: torch.Tensor,
    target: torch.Tensor,
    kind: str = "giou",
    weight: Optional[torch.Tensor] = None,
    hull_epsilon: float = 0.0,
) -> torch.Tensor:
    """
    Summed loss of box regression (FCOS, section 3; GIoU: Rezatofighi et al. 2019, eq. 3).

    Args:
        pred, target: (P, 4) distances l, t, r, b.
        kind: "giou" (1 - GIoU), "iou" (-log IoU) or "linear_iou" (1 - IoU).
        weight: (P,) factors, or None for ones.
        hull_epsilon: see `ltrb_ious`.

    Returns:
        a scalar; 0, with a gradient, for P = 0.

    Raises:
        ValueError: unknown kind.
    """
    check_choice("kind", kind, LTRB_LOSSES)
    iou, giou = ltrb_ious(pred, target, hull_epsilon)
    losses = -torch.log(iou) if kind == "iou" else 1 - (giou if kind == "giou" else iou)
    return (losses if weight is None else losses * weight).sum()
