"""
BlendMask's inference written the plain way, as the paper and its public code do it: the top layer on every location,
loops over images and levels, RoIAlign, interpolation, softmax and sum one by one.
"""

import torch
import torch.nn.functional as F
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, ImageList, Instances
from torchvision.ops import roi_align

from instseg_d2.modeling.blendmask.blendmask import BlendMask
from projects.benchmarks.plain.fcos import plain_candidates


@torch.no_grad()
def plain_infer(model: BlendMask, images: ImageList) -> list[Instances]:
    """The detections of ``model.infer(images)``, for the blender with RoIAlign (aligned)."""
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
            plain_candidates(*(maps[image] for maps in level), stride, limits)
            for level, stride in zip(levels, head.strides)
        ]
        boxes, scores, classes, attention = (torch.cat(parts) for parts in zip(*found))
        scores = scores.sqrt()
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
