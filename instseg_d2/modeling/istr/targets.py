"""
Training targets of ISTR. B images, M objects of the batch, P pairs, S the side of an encoded mask.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torchvision.ops import roi_align

from ..blendmask.targets import crop_mask_targets


def rasterised(instances: Instances) -> Instances:
    """The same objects with bitmasks on the boxes' device: what several crops of one mask are cut from."""
    masks = instances.gt_masks
    if not isinstance(masks, PolygonMasks):
        return instances
    instances = Instances(instances.image_size, **instances.get_fields())
    bitmasks = BitMasks.from_polygon_masks(masks, *instances.image_size)
    instances.gt_masks = bitmasks.to(instances.gt_boxes.device)
    return instances


class Targets:
    """
    The ground truth of a batch, objects of all images in one row.

    Attributes:
        counts: objects of each image; image: (M,) int64 image of each object; classes: (M,) int64.
        boxes: (M, 4) x1, y1, x2, y2, input pixels; scale: (B, 4) width, height, width, height of the unpadded images.
        crops: (M, S, S) 0/1 float32: each mask inside its own box.
    """

    def __init__(self, gt_instances: Sequence[Instances], size: int, refined: bool):
        """
        Args:
            size: S; refined: whether masks will be cropped by other boxes than their own, see `crop`.
        """
        # Each polygon is rasterised once: at full size when it is cropped again later, else inside its box.
        self.instances = [rasterised(x) for x in gt_instances] if refined else list(gt_instances)
        self.size = size
        self.counts = [len(x) for x in gt_instances]
        self.boxes = torch.cat([x.gt_boxes.tensor for x in gt_instances]).float()
        self.classes = torch.cat([x.gt_classes for x in gt_instances])
        device = self.boxes.device
        self.image = torch.repeat_interleave(torch.tensor(self.counts)).to(device)
        sizes = [x.image_size for x in gt_instances]
        self.scale = torch.tensor([[w, h, w, h] for h, w in sizes], dtype=torch.float32, device=device)
        self.crops = crop_mask_targets(self.instances, size).float()

    def crop(self, objects: torch.Tensor, boxes: torch.Tensor, pairs: Sequence[int]) -> torch.Tensor:
        """
        Masks inside other boxes, which are clamped to the unpadded image.

        Args:
            objects: (H, P) index into the objects of the batch, in the order of the images; boxes: (H, P, 4).
            pairs: how many of the P belong to each image.

        Returns:
            (H, P, S, S) 0/1 float32.
        """
        crops, first = [], 0
        parts = zip(self.instances, self.scale, self.counts, objects.split(pairs, 1), boxes.detach().split(pairs, 1))
        for instances, limit, count, own, boxes_of_image in parts:
            rois = torch.minimum(boxes_of_image.clamp(min=0), limit).flatten(0, 1)
            rois = torch.cat([(own - first).flatten()[:, None].to(rois.dtype), rois], dim=1)
            masks = instances.gt_masks.tensor.to(rois.device)[:, None].float()
            inside = roi_align(masks, rois, self.size, 1.0, 0, True)[:, 0] >= 0.5
            crops.append(inside.view(*own.shape, self.size, self.size))
            first += count
        return torch.cat(crops, dim=1).float()
