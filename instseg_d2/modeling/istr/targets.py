"""
Training targets of ISTR. B images, M objects of the batch, P pairs, S the side of an encoded mask.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Instances

from ..ground_truth import box_masks, crop_masks, image_index, image_masks


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
        self.size = size
        self.counts = [len(x) for x in gt_instances]
        self.boxes = torch.cat([x.gt_boxes.tensor for x in gt_instances]).float()
        self.classes = torch.cat([x.gt_classes for x in gt_instances])
        device = self.boxes.device
        self.image = image_index(gt_instances, device)
        sizes = [x.image_size for x in gt_instances]
        self.scale = torch.tensor([[w, h, w, h] for h, w in sizes], dtype=torch.float32, device=device)
        # Each polygon is rasterised once: at full size when it is cropped again later, else inside its box.
        self.masks = [image_masks(x) for x in gt_instances] if refined else None
        if refined:
            own = (torch.arange(count, device=device) for count in self.counts)
            boxes = (x.gt_boxes.tensor for x in gt_instances)
            crops = torch.cat([crop_masks(*parts, size) for parts in zip(self.masks, own, boxes)])
        else:
            crops = box_masks(gt_instances, size, "gt_boxes")
        self.crops = crops.float()

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
        parts = zip(self.masks, self.scale, self.counts, objects.split(pairs, 1), boxes.detach().split(pairs, 1))
        for masks, limit, count, own, boxes_of_image in parts:
            clamped = torch.minimum(boxes_of_image.clamp(min=0), limit).flatten(0, 1)
            inside = crop_masks(masks, (own - first).flatten(), clamped, self.size)
            crops.append(inside.view(*own.shape, self.size, self.size))
            first += count
        return torch.cat(crops, dim=1).float()
