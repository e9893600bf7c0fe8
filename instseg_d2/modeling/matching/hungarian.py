"""Bipartite matching on the host. N images, Q predictions an image, M_i objects of image i."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment


def match_by_score(scores: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """
    The one-to-one matching of highest total score of every image (Hungarian algorithm).

    All images are copied to the host at once. Scores that are not finite count as the worst.

    Args:
        scores: (Q, M_i) of each image, all on one device.

    Returns:
        for each image (prediction, object), int64 index vectors of length min(Q, M_i) on the scores' device, sorted by
        prediction.
    """
    most = max((x.shape[1] for x in scores), default=0)
    padded = torch.stack([F.pad(x.detach().float(), (0, most - x.shape[1])) for x in scores])
    on_host = torch.nan_to_num(padded, nan=-1e6, posinf=1e6, neginf=-1e6).cpu().numpy()
    matches = []
    for matrix, x in zip(on_host, scores):
        rows, columns = linear_sum_assignment(matrix[:, : x.shape[1]], maximize=True)
        matches.append(tuple(torch.as_tensor(index, dtype=torch.int64, device=x.device) for index in (rows, columns)))
    return matches
