"""
BlendMask's inference written the plain way, as the paper and its public code do it: the top layer on every location,
loops over images and levels, RoIAlign, interpolation, softmax and sum one by one.

The oracle of the tests and the baseline of the benchmark.
"""

import torch
import torch.nn.functional as F
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, ImageList, Instances
from torchvision.ops import roi_align

from .blendmask import BlendMask


def _candidates(logits, distances, quality, attention, stride, limits):
    """The best candidates of one image and level: boxes, rooted scores, classes, attention."""
    height, width = logits.shape[-2:]
    ys, xs = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    xs, ys = ((v.flatten() * stride + stride // 2).to(logits) for v in (xs, ys))
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
    return boxes, score.sqrt(), label, attention.flatten(1).T[location]


@torch.no_grad()
def plain_infer(model: BlendMask, images: ImageList) -> list[Instances]:
    """What ``model.infer(images)`` returns, for the blender with RoIAlign (aligned)."""
    features = model.backbone(images.tensor)
    fcos, head, blender = model.proposal_generator, model.proposal_generator.head, model.blender
    limits = fcos.limits_test
    bases = model.basis_module(features)

    levels = []
    for level, name in enumerate(fcos.in_features):
        x = head.shared_tower(features[name], level)
        tower = head.box_tower(x, level)
        distances = head.box_distances(tower)
        if head.scales is not None:
            distances = distances * head.scales[level]
        logits = head.class_logits(head.class_tower(x, level))
        levels.append((logits, F.relu(distances), head.quality_logits(tower), model.top_layer(tower)))

    results = []
    for image, size in enumerate(images.image_sizes):
        found = [
            _candidates(*(maps[image] for maps in level), stride, limits) for level, stride in zip(levels, head.strides)
        ]
        boxes, scores, classes, attention = (torch.cat(parts) for parts in zip(*found))
        keep = batched_nms(boxes, scores, classes, limits.nms_threshold)[: limits.post_nms_topk]
        result = Instances(size)
        result.pred_boxes = Boxes(boxes[keep])
        result.scores = scores[keep]
        result.pred_classes = classes[keep]
        rois = torch.cat([torch.full_like(boxes[keep, :1], image), boxes[keep]], dim=1)
        crops = roi_align(
            bases, rois, blender.resolution, blender.spatial_scale, sampling_ratio=blender.sampling_ratio, aligned=True
        )
        attention = attention[keep].view(-1, blender.num_bases, blender.attention_size, blender.attention_size)
        if blender.top_interp == "nearest":
            attention = F.interpolate(attention, crops.shape[-2:], mode="nearest")
        else:
            attention = F.interpolate(attention, crops.shape[-2:], mode="bilinear", align_corners=False)
        result.pred_masks = (crops * attention.softmax(1)).sum(1, keepdim=True).sigmoid()
        results.append(result)
    return results
