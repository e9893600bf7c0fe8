"""
Plain inference of FCOS: loops over images and levels, one convolution per output, all candidates decoded.

N images, K classes, Q candidates, D detections, C channels, h x w cells of a level.
"""

import torch
import torch.nn.functional as F
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, ImageList, Instances

from instseg_d2.modeling.proposal_generator.fcos import FCOS
from instseg_d2.modeling.proposal_generator.fcos_detector import FCOSDetector


def plain_locations(height: int, width: int, stride: int, like: torch.Tensor):
    """Pixel coordinates x and y of a level's locations: (height, width) each."""
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return ((v * stride + stride // 2).to(like) for v in (xs, ys))


def plain_candidates(logits, distances, quality, top, stride: int, limits):
    """
    The best candidates of one image and level.

    Args:
        logits: (K, h, w).
        distances: (4, h, w), in strides.
        quality: (1, h, w) logits.
        top: (C, h, w) of the top layers.

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


def plain_levels(fcos: FCOS, features: dict, top_layer=None) -> list[tuple]:
    """
    For each level, maps (N, C, h, w): class logits, distances in strides, quality logits, and the output of the top
    layer on the box tower (or the quality logits again).
    """
    head, levels = fcos.head, []
    for level, name in enumerate(fcos.in_features):
        x = head.shared_tower(features[name], level)
        tower = head.box_tower(x, level)
        distances = head.box_distances(tower)
        if head.scales is not None:
            distances = distances * head.scales[level]
        logits, quality = head.class_logits(head.class_tower(x, level)), head.quality_logits(tower)
        levels.append((logits, F.relu(distances), quality, quality if top_layer is None else top_layer(tower)))
    return levels


def plain_detections(fcos: FCOS, levels: list, image: int, size: tuple):
    """The detections of one image of size (H, W), with unclipped boxes, and the top layer's values (D, C)."""
    limits = fcos.limits_test
    found = [
        plain_candidates(*(maps[image] for maps in level), stride, limits)
        for level, stride in zip(levels, fcos.head.strides)
    ]
    boxes, scores, classes, top = (torch.cat(parts) for parts in zip(*found))
    scores = scores.sqrt() if limits.sqrt_scores else scores
    keep = batched_nms(boxes, scores, classes, limits.nms_threshold)[: limits.post_nms_topk]
    result = Instances(size, pred_boxes=Boxes(boxes[keep]), scores=scores[keep], pred_classes=classes[keep])
    return result, top[keep]


@torch.no_grad()
def plain_infer(model: FCOSDetector, images: ImageList) -> list[Instances]:
    """The detections of ``model.infer(images)``."""
    fcos = model.proposal_generator
    levels = plain_levels(fcos, model.backbone(images.tensor))
    return [plain_detections(fcos, levels, image, size)[0] for image, size in enumerate(images.image_sizes)]
