"""Training targets of BlendMask. N images, M objects of the batch, R mask resolution."""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask

from ..image_mask_head import crop_targets


def crop_mask_targets(gt_instances: Sequence[Instances], resolution: int) -> torch.Tensor:
    """Each object's mask inside its box, from polygons or bitmasks: (M, R, R) bool."""
    return crop_targets(gt_instances, resolution, "gt_boxes")


def semantic_target(instances: Instances, stride: int, device) -> torch.Tensor:
    """
    The semantic map of one image from its instance masks, at every ``stride``-th pixel: (ceil(H / stride),
    ceil(W / stride)) int64, class + 1, later objects over earlier ones, 0 where there is none.
    """
    height, width = instances.image_size
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        bitmaps = [polygons_to_bitmask(polygons, height, width)[::stride, ::stride] for polygons in masks.polygons]
        empty = np.zeros((0, -(-height // stride), -(-width // stride)), dtype=bool)
        masks = torch.from_numpy(np.stack(bitmaps) if bitmaps else empty).to(device)
    else:
        masks = masks.tensor[:, ::stride, ::stride]
    # Number the objects from 1; a pixel belongs to the highest number that covers it.
    order = torch.arange(1, len(instances) + 1, device=masks.device)[:, None, None]
    background = masks.new_zeros((1, *masks.shape[1:]))
    topmost = torch.cat([background, masks * order]).amax(0)
    labels = torch.cat([instances.gt_classes.new_zeros(1), instances.gt_classes + 1])
    return labels[topmost]


def batch_semantic_target(batched_inputs, gt_instances: Sequence[Instances], size, stride: int) -> torch.Tensor:
    """
    The samples' ``basis_sem`` (H, W), or where there is none what the instance masks say, at every ``stride``-th pixel
    and padded with 0 to the batch's ``size`` (H, W): (N, H / stride, W / stride) int64.
    """
    device = gt_instances[0].gt_boxes.device
    target = torch.zeros(
        (len(gt_instances), -(-size[0] // stride), -(-size[1] // stride)), dtype=torch.int64, device=device
    )
    for row, x, instances in zip(target, batched_inputs, gt_instances):
        if "basis_sem" in x:
            image = x["basis_sem"][::stride, ::stride].to(device, non_blocking=True)
        else:
            image = semantic_target(instances, stride, device)
        row[: image.shape[0], : image.shape[1]] = image
    return target
