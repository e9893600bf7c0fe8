"""
Decodes score maps into segments.

N images, n windows per image, D segments, k grid, m mask size, h x w cells of the feature map, H x W pixels of the
network's input.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances
from torchvision.ops import clip_boxes_to_image, nms

from ... import ops
from ...layers import check_choice
from ..postprocessing import masks_to_boxes, rescore, select_detections
from .windows import inside_image, window_corners

SCORES = ("objectness", "product")
PRE_NMS_FACTOR = 4  # NMS first tries this many times the requested segments, which is usually enough


@dataclass(frozen=True)
class ProposalLimits:
    """
    Which windows become segments.

    Attributes:
        top_windows: number of windows with the highest objectness that are assembled per image and scale.
        score: "objectness", or its "product" with the mean mask probability inside the mask.
        nms_threshold: box IoU above which NMS drops the worse of two segments.
        max_proposals: number of segments kept.
    """

    top_windows: int = 2000
    score: str = "objectness"
    nms_threshold: float = 0.8
    max_proposals: int = 1000

    def __post_init__(self):
        check_choice("score", self.score, SCORES)


def windows_to_segments(mask_logits: torch.Tensor, objectness: torch.Tensor, corners, stride: int, image_size, score):
    """
    Convert the windows of one image to segments. A mask is where the logit is above 0; its box is tight.

    Windows with an empty mask, a mask outside the image, a NaN score or an objectness of -inf are dropped.

    Args:
        mask_logits: (n, m, m) float32.
        objectness: (n,) float32 logits.
        corners: first row and column of the windows, each (n,).
        image_size: (H, W); boxes are clipped to it.
        score: see `ProposalLimits`.

    Returns:
        Instances with pred_boxes, scores (0 to 1), objectness_logits, pred_masks (D, m, m) probabilities, and windows,
        the Boxes that the masks fill.
    """
    top, left = corners
    size = mask_logits.shape[-1]
    corner = torch.stack([left, top, left, top], dim=1)
    cells = masks_to_boxes(mask_logits > 0)
    boxes = Boxes(clip_boxes_to_image((corner + cells) * stride, tuple(image_size)))
    filled = (cells[:, 2] > cells[:, 0]) & boxes.nonempty()
    probabilities = mask_logits.sigmoid()
    scores = objectness.sigmoid()
    result = Instances(tuple(image_size))
    result.pred_boxes = boxes
    result.scores = rescore(scores, probabilities, 0.5) if score == "product" else scores
    result.objectness_logits = objectness
    result.pred_masks = probabilities
    result.windows = Boxes(torch.stack([left, top, left + size, top + size], dim=1).float() * stride)
    return select_detections(result, filled & result.scores.isfinite() & (objectness > -torch.inf))


def best_windows(objectness: torch.Tensor, image_sizes: Sequence[tuple], stride: int, mask_size: int, count: int):
    """
    The windows with the highest objectness (N, h, w) among those with their centre in the image.

    Returns:
        values: (N, n) logits, best first; -inf if an image has fewer windows.
        cells: (N, n) y * w + x.
    """
    size = objectness.shape[-2:]
    inside = torch.stack([inside_image(size, x, stride, mask_size, objectness.device) for x in image_sizes])
    objectness = objectness.float()
    objectness = torch.where(inside & ~objectness.isnan(), objectness, -torch.inf).flatten(1)
    return objectness.topk(min(count, objectness.shape[1]), dim=1)


def decode(
    score_maps: torch.Tensor, objectness: torch.Tensor, image_sizes: Sequence[tuple], *, stride, mask_size, grid, limits
) -> list[Instances]:
    """
    The segments of one scale, before non-maximum suppression.

    Args:
        score_maps: (N, k * k, h, w) logits.
        objectness: (N, h, w) logits.
        image_sizes: (H, W) of each image without padding.

    Returns:
        Instances per image, see `windows_to_segments`.
    """
    values, cells = best_windows(objectness, image_sizes, stride, mask_size, limits.top_windows)
    top, left = window_corners(cells, score_maps.shape[-1], mask_size)
    image = torch.arange(len(cells), device=cells.device)[:, None].expand_as(cells)
    windows = torch.stack([image, top, left], dim=-1)
    logits = ops.assemble_instances(score_maps, windows.flatten(0, 1), mask_size, grid).float()
    results = []
    for value, rows, columns, masks, size in zip(values, top, left, logits.split(cells.shape[1]), image_sizes):
        results.append(windows_to_segments(masks, value, (rows, columns), stride, size, limits.score))
    return results


def rescale_segments(segments: Instances, image_size: tuple) -> Instances:
    """Rescale boxes and windows to the pixels of the same image at another size (H, W)."""
    height, width = segments.image_size
    result = Instances(tuple(image_size), **segments.get_fields())
    for name in ("pred_boxes", "windows"):
        boxes = segments.get(name).clone()
        boxes.scale(image_size[1] / width, image_size[0] / height)
        result.set(name, boxes)
    return result


def best_segments(segments: Instances, limits: ProposalLimits) -> Instances:
    """Class-agnostic box NMS (section 3.3), then the best ``max_proposals``, best first."""
    boxes, scores, count = segments.pred_boxes.tensor, segments.scores, limits.max_proposals
    # A segment is only suppressed by better ones, so if enough of the best survive, the others do not matter.
    few = scores.topk(min(PRE_NMS_FACTOR * count, len(scores))).indices
    keep = few[nms(boxes[few], scores[few], limits.nms_threshold)]
    if len(keep) < count and len(few) < len(scores):
        keep = nms(boxes, scores, limits.nms_threshold)
    return segments[keep[:count]]


def as_proposals(segments: Instances) -> Instances:
    """Convert segments to proposals for Detectron2's ROI heads: proposal_boxes and objectness_logits."""
    result = Instances(segments.image_size)
    result.proposal_boxes = segments.pred_boxes
    result.objectness_logits = segments.objectness_logits
    return result


def paste(segments: Instances, size: tuple) -> Instances:
    """
    Convert segments to detections at output size (H, W): paste masks bilinearly into their windows, take their tight
    boxes and drop empty masks.

    Args:
        segments: with scores, pred_classes, pred_masks (D, m, m) probabilities and windows.
    """
    segments = rescale_segments(segments, size)
    masks = paste_masks_in_image(segments.pred_masks, segments.windows, tuple(size), threshold=0.5).bool()
    boxes = Boxes(masks_to_boxes(masks))
    result = Instances(tuple(size))
    result.pred_boxes = boxes
    result.scores = segments.scores
    result.pred_classes = segments.pred_classes
    result.pred_masks = masks
    return select_detections(result, boxes.nonempty())
