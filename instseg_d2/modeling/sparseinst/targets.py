"""Training targets of SparseInst. M objects of an image, H x W pixels, h x w cells of the predicted masks."""

import torch
import torch.nn.functional as F
from detectron2.structures import Instances

from ..ground_truth import canvas_masks


def resized_targets(instances: Instances, canvas: tuple, size: tuple) -> torch.Tensor:
    """
    The objects' masks on the padded batch's canvas, resized bilinearly and not binarised: (M, h, w) float32.

    Args:
        canvas: (H, W) of the padded batch; size: (h, w). Where the canvas is exactly four times as large, a resized
            pixel is the mean of the middle 2 x 2 of its 4 x 4 pixels, and no float mask of full size is made.
    """
    masks = canvas_masks([instances], canvas)
    if (size[0] * 4, size[1] * 4) == tuple(canvas):
        return sum(masks[:, i::4, j::4].float() for i in (1, 2) for j in (1, 2)) / 4
    return F.interpolate(masks[:, None].float(), size, mode="bilinear", align_corners=False)[:, 0]
