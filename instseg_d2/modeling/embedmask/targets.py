"""
Training targets of EmbedMask.

N images, M objects, P positive locations, Q candidates among them, H x W pixels.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from detectron2.structures.boxes import matched_pairwise_iou

from ...layers import join_boxes
from ..ground_truth import canvas_masks


class GroundTruth:
    """
    The objects of a batch.

    Attributes:
        boxes: (M, 4), pixels.
        inclusive: whether boxes include pixels x2 and y2.
        images: (M,) int64, the image of each object.
        num_images: N.
        masks: (M, H, W) bool, padded to one canvas.
    """

    def __init__(self, gt_instances: Sequence[Instances], canvas: tuple, inclusive: bool = False):
        """canvas: (H, W) of the padded batch, pixels."""
        boxes, self.images = join_boxes([x.gt_boxes for x in gt_instances])
        self.boxes = boxes.float()
        self.inclusive = inclusive
        self.num_images = len(gt_instances)
        self.masks = canvas_masks(gt_instances, canvas)

    def contains(self, objects: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
        """Whether the mask of each object (P,) contains the location (P, 2), in pixels; False outside the canvas."""
        x, y = xy.long().unbind(1)
        height, width = self.masks.shape[-2:]
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        return self.masks[objects, y.clamp(0, height - 1), x.clamp(0, width - 1)] & inside

    def cells(self, stride: int) -> torch.Tensor:
        """
        Masks resized bilinearly to an even stride, True above 0: (M, H / stride, W / stride) bool.

        A cell's value would be the mean of the 2 x 2 pixels around its centre, so it is above 0 if one of them is True.
        """
        first = stride // 2 - 1
        a, b, c, d = (self.masks[:, first + i :: stride, first + j :: stride] for i in (0, 1) for j in (0, 1))
        return a | b | c | d


def box_ious(boxes: torch.Tensor, others: torch.Tensor, inclusive: bool) -> torch.Tensor:
    """IoU (P,) of paired boxes (P, 4), which include pixels x2 and y2 if ``inclusive``."""
    end = torch.arange(4, device=boxes.device) // 2 if inclusive else 0  # 0, 0, 1, 1
    return matched_pairwise_iou(Boxes(boxes + end), Boxes(others + end))


def choose_locations(ious: torch.Tensor, objects: torch.Tensor, num_objects: int, threshold: float, averaged: bool):
    """
    Choose the candidates, the positive locations that predict each object's proposal.

    Args:
        ious: (P,) IoU of the predicted and the true box.
        objects: (P,) int64, the object of each location.
        averaged: choose all with an IoU above the threshold or, if there is none, all with the best IoU. If False,
            choose the first with the best IoU.

    Returns:
        (Q,) int64 indices into the positives. An object without positive locations has no candidate.
    """
    best = ious.new_zeros(num_objects).scatter_reduce_(0, objects, ious, "amax")[objects]
    if averaged:
        return torch.where(best > threshold, ious > threshold, ious == best).nonzero()[:, 0]
    count = len(objects)
    places = torch.arange(count, device=objects.device)
    first = places.new_full((num_objects,), count)
    first.scatter_reduce_(0, objects, torch.where(ious == best, places, count), "amin")
    return first[first < count]
