"""Bipartite matching on the host. N images, Q predictions per image, M_i objects in image i."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F


def match_by_score(scores: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """
    Match predictions and objects one to one in each image, with the highest total score (Hungarian algorithm).

    The scores of all images are copied to the host at once. NaN ranks lowest.

    Args:
        scores: (Q, M_i) for each image, all on one device.

    Returns:
        (prediction, object) for each image: int64 index vectors of length min(Q, M_i) on the scores' device, sorted by
        prediction.
    """
    from scipy.optimize import linear_sum_assignment  # half the time of importing this package

    max_objects = max((x.shape[1] for x in scores), default=0)
    padded = torch.stack([F.pad(x.detach().float(), (0, max_objects - x.shape[1])) for x in scores])
    on_host = torch.nan_to_num(padded, nan=-1e6, posinf=1e6, neginf=-1e6).cpu().numpy()
    matches = [
        np.stack(linear_sum_assignment(matrix[:, : x.shape[1]], maximize=True)) for matrix, x in zip(on_host, scores)
    ]
    pairs = torch.from_numpy(np.concatenate(matches, axis=1)).to(padded.device, torch.int64, non_blocking=True)
    return [tuple(part) for part in pairs.split([x.shape[1] for x in matches], dim=1)]
