"""
Ground truth as tensors, for all methods; `data.segmentations` does the same for annotations.

N images, M objects, D boxes, R resolution, H x W pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from detectron2.structures import BitMasks, Instances, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from torch import nn
from torchvision.ops import roi_align

from ..errors import DatasetError

__all__ = [
    "box_masks",
    "canvas_masks",
    "crop_masks",
    "ensure_masks",
    "image_masks",
    "pad_maps",
    "semantic_map",
]


def ensure_masks(instances: Sequence[Instances], owner: nn.Module) -> list[Instances]:
    """
    Add empty ``gt_masks`` to images without objects, where Detectron2's mapper omits the field.

    Raises:
        DatasetError: an image has objects but no masks; the message names the class of ``owner``.
    """
    if not all(x.has("gt_masks") for x in instances if len(x)):
        raise DatasetError(f"{type(owner).__name__} trains on masks: set MODEL.MASK_ON to True.")
    completed = []
    for x in instances:
        if not x.has("gt_masks"):
            x = Instances(x.image_size, **x.get_fields())
            x.gt_masks = BitMasks(torch.zeros((0, *x.image_size), dtype=torch.bool, device=x.gt_boxes.device))
        completed.append(x)
    return completed


def image_masks(instances: Instances, stride: int = 1, first: int = 0) -> torch.Tensor:
    """
    The masks of an image's objects at every ``stride``-th row and column, starting at ``first``.

    Returns:
        (M, ceil((H - first) / stride), ceil((W - first) / stride)) bool on the boxes' device.
    """
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        height, width = instances.image_size
        grid = np.zeros((0, height, width), dtype=bool)[:, first::stride, first::stride]
        maps = [polygons_to_bitmask(x, height, width)[None, first::stride, first::stride] for x in masks.polygons]
        masks = torch.from_numpy(np.concatenate([grid, *maps]))
    else:
        masks = masks.tensor[:, first::stride, first::stride]
    return masks.to(instances.gt_boxes.device, non_blocking=True)


def canvas_masks(gt_instances: Sequence[Instances], canvas: tuple, stride: int = 1, first: int = 0) -> torch.Tensor:
    """
    `image_masks` of a batch, zero-padded to one canvas.

    Args:
        canvas: (H, W) of the padded batch, pixels.

    Returns:
        (M, ceil((H - first) / stride), ceil((W - first) / stride)) bool.
    """
    height, width = (len(range(first, side, stride)) for side in canvas)
    counts = [len(x) for x in gt_instances]
    device = gt_instances[0].gt_boxes.device
    masks = torch.zeros((sum(counts), height, width), dtype=torch.bool, device=device)
    for x, padded in zip(gt_instances, masks.split(counts)):
        own = image_masks(x, stride, first)[:, :height, :width]
        padded[:, : own.shape[1], : own.shape[2]] = own
    return masks


def box_masks(instances: Sequence[Instances], resolution: int, boxes: str = "proposal_boxes") -> torch.Tensor:
    """Masks cropped to the boxes in field ``boxes`` and resized, as Mask R-CNN's targets: (M, R, R) bool."""
    crops = [torch.zeros((0, resolution, resolution), dtype=torch.bool, device=instances[0].get(boxes).device)]
    for x in instances:
        if len(x):
            crops.append(x.gt_masks.crop_and_resize(x.get(boxes).tensor, resolution).to(crops[0].device))
    return torch.cat(crops)


def crop_masks(masks: torch.Tensor, objects: torch.Tensor, boxes: torch.Tensor, resolution: int) -> torch.Tensor:
    """
    Like `box_masks`, but with any number of boxes per object.

    Args:
        masks: (M, H, W) bool.
        objects: (D,) int64, the object of each box.
        boxes: (D, 4), pixels.

    Returns:
        (D, R, R) bool.
    """
    rois = torch.cat([objects[:, None].to(boxes.dtype), boxes], dim=1)
    return roi_align(masks[:, None].float(), rois, resolution, 1.0, 0, True)[:, 0] >= 0.5


def semantic_map(instances: Instances, stride: int) -> torch.Tensor:
    """
    Paint the instance masks into a semantic map of every ``stride``-th pixel: class + 1, or 0 for background. Later
    objects cover earlier ones.

    This is for samples of other mappers. Ours paints the annotations, including crowds
    (`data.segmentations.paint_semantic`).

    Returns:
        (ceil(H / stride), ceil(W / stride)) int64.
    """
    masks = image_masks(instances, stride)
    # Number the objects from 1; a pixel belongs to the highest number among its objects.
    order = torch.arange(1, len(instances) + 1, device=masks.device)[:, None, None]
    background = masks.new_zeros((1, *masks.shape[1:]))
    topmost = torch.cat([background, masks * order]).amax(0)
    labels = torch.cat([instances.gt_classes.new_zeros(1), instances.gt_classes + 1])
    return labels[topmost]


def pad_maps(maps: Sequence[torch.Tensor], size: tuple, value: int, device) -> torch.Tensor:
    """Pad N label maps below and right to ``size`` (H, W) with ``value``: (N, H, W) int64."""
    padded = torch.full((len(maps), *size), value, dtype=torch.int64, device=device)
    for row, labels in zip(padded, maps):
        row[: labels.shape[0], : labels.shape[1]] = labels.to(device, non_blocking=True)
    return padded
