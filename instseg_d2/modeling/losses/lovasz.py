"""The Lovasz hinge (Berman et al., CVPR 2018, arXiv 1705.08790). M objects, P pixels of all objects."""

import torch


def lovasz_hinge(logits: torch.Tensor, labels: torch.Tensor, objects: torch.Tensor, num_objects: int) -> torch.Tensor:
    """
    The Lovasz hinge of each object over its pixels, a convex surrogate of 1 - IoU (eq. 9 and algorithm 1).

    Pixels on the correct side of the margin (error 0 or less) are not sorted: they would come last and add nothing. If
    all labels are False, the loss is the largest error.

    Args:
        logits: (P,), positive inside the object; computed in float32.
        labels: (P,) bool.
        objects: (P,) int64, the object of each pixel, below ``num_objects``.

    Returns:
        (M,) float32; 0 for an object without pixels.
    """
    logits = logits.float()
    errors = 1 - torch.where(labels, logits, -logits)
    positives = torch.zeros(num_objects, dtype=torch.int64, device=logits.device)
    positives.index_add_(0, objects, labels.long())  # of each object
    wrong = (~(errors.detach() <= 0)).nonzero()[:, 0]  # keeps NaN, so that a diverged network has no loss of 0
    errors, labels, objects = errors[wrong], labels[wrong], objects[wrong]

    # One sort for all objects, largest error first within each: the bits of a positive float32 grow with its value.
    order = ((objects << 32) - errors.detach().view(torch.int32)).argsort()
    errors, labels, objects = errors[order], labels[order], objects[order]
    weights = _jaccard_steps(labels, objects, positives)
    # float64, because up to a million terms differ widely in size.
    losses = torch.zeros_like(positives, dtype=torch.float64)
    return losses.index_add(0, objects, (errors * weights).double()).float()


def _jaccard_steps(labels: torch.Tensor, objects: torch.Tensor, positives: torch.Tensor) -> torch.Tensor:
    """
    How much 1 - IoU grows when each sorted pixel (P,) turns wrong, after the pixels before it in its object.

    A missed positive lowers the intersection I by 1, a step of 1 / U for the union U. A false positive raises U by 1, a
    step of I / (U (U + 1)). This avoids subtracting nearly equal numbers.
    """
    counts = torch.zeros_like(positives).index_add_(0, objects, torch.ones_like(objects))
    starts = (counts.cumsum(0) - counts)[objects]
    before = labels.long().cumsum(0) - labels.long()
    seen = torch.cat([before, before.new_zeros(1)])[starts]  # starts: index of each object's first pixel
    rank = torch.arange(len(objects), device=objects.device) - starts
    hits = before - seen
    total = positives[objects]
    intersection, union = (total - hits).float(), (total + rank - hits).float()
    false = torch.where(total > 0, intersection / (union * (union + 1)).clamp(min=1), (rank == 0).float())
    return torch.where(labels, 1 / union.clamp(min=1), false)
