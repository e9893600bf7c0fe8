"""
Plain inference of BlendMask, as in the paper and its public code: the top layer at every location, loops over images
and levels, then RoIAlign, interpolation, softmax and sum one by one.
"""

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList, Instances
from torchvision.ops import roi_align

from instseg_d2.modeling.blendmask.blendmask import BlendMask
from projects.benchmarks.plain.fcos import plain_detections, plain_levels


@torch.no_grad()
def plain_infer(model: BlendMask, images: ImageList) -> list[Instances]:
    """The detections of ``model.infer(images)``, for a blender with ROIAlignV2."""
    features = model.backbone(images.tensor)
    fcos, blender = model.proposal_generator, model.blender
    bases = model.basis_module(features)
    levels = plain_levels(fcos, features, model.top_layer)
    results = []
    for image, size in enumerate(images.image_sizes):
        result, attention = plain_detections(fcos, levels, image, size)
        boxes = result.pred_boxes.tensor
        rois = torch.cat([torch.full_like(boxes[:, :1], image), boxes], dim=1)
        crops = roi_align(
            bases, rois, blender.resolution, blender.spatial_scale, sampling_ratio=blender.sampling_ratio, aligned=True
        )
        attention = attention.view(-1, blender.num_bases, blender.attention_size, blender.attention_size)
        if blender.top_interp == "nearest":
            attention = F.interpolate(attention, crops.shape[-2:], mode="nearest")
        else:
            attention = F.interpolate(attention, crops.shape[-2:], mode="bilinear", align_corners=False)
        result.pred_masks = (crops * attention.softmax(1)).sum(1, keepdim=True).sigmoid()
        results.append(result)
    return results
