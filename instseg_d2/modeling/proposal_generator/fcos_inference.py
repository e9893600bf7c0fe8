"""
From the outputs of an FCOS head to boxes.

N images, D detections, K classes, X rows (see layers/locations.py), P picked rows, Q candidates of an image,
Y locations of a level.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances

from .fcos_head import HeadOutputs


@dataclass(frozen=True)
class DetectionLimits:
    """
    Attributes:
        score_threshold: a candidate's class score must lie strictly above it.
        threshold_with_quality: threshold class * quality instead.
        pre_nms_topk: best candidates kept of each level and image.
        post_nms_topk: best detections kept of each image; 0 or less: all.
        nms_threshold: IoU of NMS within a class; 0 or less: no NMS.
        rooted: scores are sqrt(class * quality), else class * quality.
        clip: boxes are clipped to the unpadded image before NMS.
        inclusive: x2 and y2 are a box's last pixels, so its sides are one longer and clipping keeps them inside.
    """

    score_threshold: float = 0.05
    threshold_with_quality: bool = False
    pre_nms_topk: int = 1000
    post_nms_topk: int = 100
    nms_threshold: float = 0.6
    rooted: bool = True
    clip: bool = False
    inclusive: bool = False


def decode(outputs: HeadOutputs, rows: torch.Tensor) -> torch.Tensor:
    """The boxes at rows (P,), unclipped: (P, 4) x1, y1, x2, y2, input pixels."""
    grid = outputs.grid
    level, _, y, x = grid.locate(rows)
    xy = grid.pixels(level, y, x)
    ltrb = outputs.ltrb[rows].float() * grid.strides[level][:, None]
    return torch.cat([xy - ltrb[:, :2], xy + ltrb[:, 2:]], dim=1)


def _best_of_level(scores: torch.Tensor, topk: int):
    """
    The best (location, class) pairs of one level.

    Args:
        scores: (N, Y, K); candidates that fail the threshold are -1.

    Returns:
        score, location and class, (N, Q) each, best first. The best ``topk`` pairs lie in the ``topk`` locations with
        the best classes, so only these are searched.
    """
    num_classes = scores.shape[2]
    _, locations = scores.amax(2).topk(min(topk, scores.shape[1]), dim=1)
    picked = scores.gather(1, locations[..., None].expand(-1, -1, num_classes)).flatten(1)
    best, index = picked.topk(min(topk, picked.shape[1]), dim=1)
    return best, locations.gather(1, index // num_classes), index % num_classes


def detect(outputs: HeadOutputs, image_sizes: Sequence[tuple], limits: DetectionLimits) -> list[Instances]:
    """
    Thresholding, the best candidates of each level, NMS, the best of the image (FCOS, section 3.1).

    Candidates are ranked by class * quality; the score is its square root, or itself.

    Returns:
        one Instances an image: pred_boxes (D), scores (D,), pred_classes (D,), rows (D,), best first.
    """
    grid = outputs.grid
    class_scores = outputs.class_logits.float().sigmoid()
    ranking = class_scores * outputs.quality_logits.float().sigmoid()[:, None]
    thresholded = ranking if limits.threshold_with_quality else class_scores
    # A box that is no number would also disturb NMS among the others.
    valid = (thresholded > limits.score_threshold) & outputs.ltrb.isfinite().all(1, keepdim=True) & ~ranking.isnan()
    ranking = torch.where(valid, ranking, -1.0)

    scores, rows, classes = [], [], []
    start = 0
    image_index = torch.arange(grid.num_images, device=ranking.device)[:, None]
    for count in grid.rows_per_level:
        per_image = count // grid.num_images
        level = ranking[start : start + count].view(grid.num_images, per_image, -1)
        best, location, label = _best_of_level(level, limits.pre_nms_topk)
        scores.append(best)
        rows.append(start + image_index * per_image + location)
        classes.append(label)
        start += count
    scores, rows, classes = torch.cat(scores, 1), torch.cat(rows, 1), torch.cat(classes, 1)

    results = []
    for image, size in enumerate(image_sizes):
        # A score of -1 is below the threshold.
        valid = (scores[image] >= 0).nonzero()[:, 0]
        score, row, label = scores[image][valid], rows[image][valid], classes[image][valid]
        score = score.sqrt() if limits.rooted else score
        boxes = decode(outputs, row)
        if limits.clip:
            clipped = Boxes(boxes)
            clipped.clip([side - int(limits.inclusive) for side in size])
            boxes = clipped.tensor
        if limits.nms_threshold > 0:
            spans = torch.cat([boxes[:, :2], boxes[:, 2:] + float(limits.inclusive)], dim=1)
            keep = batched_nms(spans, score, label, limits.nms_threshold)
        else:
            keep = score.argsort(descending=True, stable=True)
        if limits.post_nms_topk > 0:
            keep = keep[: limits.post_nms_topk]
        found = Instances(size)
        found.pred_boxes = Boxes(boxes[keep])
        found.scores = score[keep]
        found.pred_classes = label[keep]
        found.rows = row[keep]
        results.append(found)
    return results
