"""
The losses of InstanceFCN (eq. 1), in float32.

N images, P and Q slots for positive and negative windows, m mask size, h x w cells of the feature map.
"""

import torch
import torch.nn.functional as F

from ..losses import mean_over_workers
from .targets import SampledWindows


def window_losses(
    objectness: torch.Tensor,
    mask_logits: torch.Tensor,
    targets: torch.Tensor,
    inside: torch.Tensor,
    sampled: SampledWindows,
) -> dict[str, torch.Tensor]:
    """
    The objectness loss of the sampled windows and the mask loss of the positive ones.

    Args:
        objectness: (N, h * w) logits.
        mask_logits: (N, P, m, m) of the windows in the positive slots.
        targets, inside: (N, P, m, m), see `mask_targets`.

    Returns:
        loss_window_objectness: logistic loss, averaged over the sampled windows of the batch.
        loss_window_mask: logistic loss, averaged over a window's cells inside the map, then over the positive windows.
    """
    with torch.autocast(objectness.device.type, enabled=False):
        objectness, mask_logits = objectness.float(), mask_logits.float()
        positives, negatives = sampled.positives_used.float(), sampled.negatives_used.float()
        counts = torch.stack([positives.sum() + negatives.sum(), positives.sum()])
        num_windows, num_positives = mean_over_workers(counts).clamp(min=1)

        right = F.softplus(-objectness.gather(1, sampled.positives)) * positives
        wrong = F.softplus(objectness.gather(1, sampled.negatives)) * negatives
        cells = F.binary_cross_entropy_with_logits(mask_logits, targets, reduction="none") * inside
        masks = cells.sum((2, 3)) / inside.sum((2, 3)).clamp(min=1) * positives
        return {
            "loss_window_objectness": (right.sum() + wrong.sum()) / num_windows,
            "loss_window_mask": masks.sum() / num_positives,
        }
