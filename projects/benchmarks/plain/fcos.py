"""FCOS's candidates written the plain way. K classes, Q candidates, C channels, h x w cells of a level."""

import torch


def plain_locations(height: int, width: int, stride: int, like: torch.Tensor):
    """Pixel coordinates x and y of a level's locations: (height, width) each."""
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((v * stride + stride // 2).to(like) for v in (xs, ys))


def plain_candidates(logits, distances, quality, top, stride: int, limits):
    """
    The best candidates of one image and level.

    Args:
        logits: (K, h, w); distances: (4, h, w) in strides; quality: (1, h, w); top: (C, h, w) of the top layers.

    Returns:
        boxes (Q, 4), class * quality (Q,), classes (Q,), top (Q, C).
    """
    xs, ys = (v.flatten() for v in plain_locations(*logits.shape[-2:], stride, logits))
    classes = logits.flatten(1).T.sigmoid()
    scores = classes * quality.flatten()[:, None].sigmoid()
    keep = (scores if limits.threshold_with_quality else classes) > limits.score_threshold
    location, label = keep.nonzero(as_tuple=True)
    score = scores[location, label]
    if len(score) > limits.pre_nms_topk:
        score, index = score.topk(limits.pre_nms_topk)
        location, label = location[index], label[index]
    l, t, r, b = (distances.flatten(1) * stride)[:, location]
    x, y = xs[location], ys[location]
    boxes = torch.stack([x - l, y - t, x + r, y + b], dim=1)
    return boxes, score, label, top.flatten(1).T[location]
