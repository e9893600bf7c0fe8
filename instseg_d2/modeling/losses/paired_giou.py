"""Generalised IoU loss of paired boxes. P pairs."""

import torch


def paired_giou_loss(boxes: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """
    1 - GIoU (Rezatofighi et al. 2019, eq. 3).

    Equals torchvision's ``generalized_box_iou_loss`` with ``eps=0``, in which every index with a mask makes the host
    wait for a GPU.

    Args:
        boxes, targets: (P, 4) x1, y1, x2, y2.

    Returns:
        (P,).
    """

    def area(low, high):
        return (high[:, 0] - low[:, 0]) * (high[:, 1] - low[:, 1])

    (low, high), (target_low, target_high) = boxes.split(2, dim=1), targets.split(2, dim=1)
    inner_low, inner_high = torch.maximum(low, target_low), torch.minimum(high, target_high)
    overlap = torch.where((inner_high > inner_low).all(1), area(inner_low, inner_high), 0.0)
    union = area(low, high) + area(target_low, target_high) - overlap
    hull = area(torch.minimum(low, target_low), torch.maximum(high, target_high))
    return 1 - overlap / union + (hull - union) / hull
