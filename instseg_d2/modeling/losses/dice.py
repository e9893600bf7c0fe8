"""The dice coefficient of soft masks. P pairs, Q predictions, M objects, X pixels."""

import torch


def paired_dice(pred: torch.Tensor, target: torch.Tensor, eps: float) -> torch.Tensor:
    """
    2 sum(x y) / (sum x^2 + sum y^2 + eps) of each pair (V-Net's squared form).

    Args:
        pred, target: (P, X) probabilities.

    Returns:
        (P,).
    """
    return 2 * (pred * target).sum(1) / (pred.square().sum(1) + target.square().sum(1) + eps)


def pairwise_dice(pred: torch.Tensor, target: torch.Tensor, eps: float) -> torch.Tensor:
    """`paired_dice` of all pairs of pred (Q, X) and target (M, X): (Q, M)."""
    return 2 * (pred @ target.T) / (pred.square().sum(1)[:, None] + target.square().sum(1) + eps)
