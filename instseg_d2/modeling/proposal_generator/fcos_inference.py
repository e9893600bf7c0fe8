"""
Decodes the outputs of an FCOS head into boxes.

N images, D detections, K classes, X rows (see layers/locations.py), P selected rows, Q candidates per image,
Y locations per level.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torchvision.ops import clip_boxes_to_image

from .fcos_head import HeadOutputs


@dataclass(frozen=True)
class DetectionLimits:
    """
    Which candidates become detections.

    Attributes:
        score_threshold: minimum class score, exclusive.
        threshold_with_quality: threshold class * quality instead of the class score.
        pre_nms_topk: number of candidates kept per level and image.
        post_nms_topk: number of detections kept per image; 0 or less keeps all.
        nms_threshold: IoU threshold of the NMS within a class; 0 or less means no NMS.
        sqrt_scores: whether scores are sqrt(class * quality) or class * quality.
        clip: clip boxes to the unpadded image before NMS.
        inclusive: boxes include pixels x2 and y2: their sides are one longer and are clipped to the last pixel.
    """

    score_threshold: float = 0.05
    threshold_with_quality: bool = False
    pre_nms_topk: int = 1000
    post_nms_topk: int = 100
    nms_threshold: float = 0.6
    sqrt_scores: bool = True
    clip: bool = False
    inclusive: bool = False


def decode(outputs: HeadOutputs, rows: torch.Tensor) -> torch.Tensor:
    """Decode the boxes at rows (P,): (P, 4) x1, y1, x2, y2 in input pixels, unclipped."""
    grid = outputs.grid
    level, _, y, x = grid.locate(rows)
    xy = grid.pixels(level, y, x)
    ltrb = outputs.ltrb[rows].float() * grid.strides[level][:, None]
    return torch.cat([xy - ltrb[:, :2], xy + ltrb[:, 2:]], dim=1)


def _best_of_level(scores: torch.Tensor, topk: int):
    """
    The best (location, class) pairs of one level.

    The best ``topk`` pairs lie at the ``topk`` locations with the highest class scores, so only these are searched.

    Args:
        scores: (N, Y, K); -1 for candidates below the threshold.

    Returns:
        score, location and class, (N, Q) each, best first.
    """
    num_classes = scores.shape[2]
    _, locations = scores.amax(2).topk(min(topk, scores.shape[1]), dim=1)
    picked = scores.gather(1, locations[..., None].expand(-1, -1, num_classes)).flatten(1)
    best, index = picked.topk(min(topk, picked.shape[1]), dim=1)
    return best, locations.gather(1, index // num_classes), index % num_classes


class Candidates(NamedTuple):
    """The best (location, class) pairs of every level: scores, rows and classes, (N, Q) each; a score of -1 is none."""

    scores: torch.Tensor
    rows: torch.Tensor
    classes: torch.Tensor


def candidates(outputs: HeadOutputs, limits: DetectionLimits) -> Candidates:
    """Thresholding, and the best candidates of each level and image. The scores are class * quality."""
    grid = outputs.grid
    class_scores = outputs.class_logits.float().sigmoid()
    ranking = class_scores * outputs.quality_logits.float().sigmoid()[:, None]
    thresholded = ranking if limits.threshold_with_quality else class_scores
    # A NaN box would also disturb the NMS of the others.
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
    return Candidates(torch.cat(scores, 1), torch.cat(rows, 1), torch.cat(classes, 1))


def detect(outputs: HeadOutputs, image_sizes: Sequence[tuple], limits: DetectionLimits) -> list[Instances]:
    """
    Apply the threshold, keep the best candidates of each level, run NMS and keep the best of the image (FCOS, section
    3.1). Candidates are ranked by class * quality.

    Returns:
        one Instances per image: pred_boxes (D), scores (D,), pred_classes (D,), rows (D,), best first.
    """
    scores, rows, classes = candidates(outputs, limits)

    results = []
    for image, size in enumerate(image_sizes):
        # A score of -1 is below the threshold.
        valid = (scores[image] >= 0).nonzero()[:, 0]
        score, row, label = scores[image][valid], rows[image][valid], classes[image][valid]
        score = score.sqrt() if limits.sqrt_scores else score
        boxes = decode(outputs, row)
        if limits.clip:
            boxes = clip_boxes_to_image(boxes, [side - int(limits.inclusive) for side in size])
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
