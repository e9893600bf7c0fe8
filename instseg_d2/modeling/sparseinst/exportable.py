"""SparseInst as a function of tensors."""

import copy

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import nn

from ..exportable import CanvasExportable, Found, clipped_boxes, shared_copy, sides, tight_boxes
from ..postprocessing import rescore, resize_masks
from ..rcnn_exportable import OfRCNN
from .inference import class_scores

BOXES_AT_ONCE = 8  # masks that are resized together, for little memory


def best_slots(outputs: dict[str, torch.Tensor], limits: nn.Module) -> Found:
    """
    `inference.detections` with as many detections for every image.

    Args:
        limits: what has the score_threshold, mask_threshold and max_detections.
    """
    best, labels = class_scores(outputs).max(-1)
    masks = outputs["mask_logits"].float().sigmoid()
    scores = rescore(best, masks, limits.mask_threshold)
    scores = torch.where((best > limits.score_threshold) & (scores > 0), scores, 0.0)  # NaN is not above 0
    if scores.shape[1] > limits.max_detections:
        scores, index = scores.topk(limits.max_detections, dim=1)
        labels = labels.gather(1, index)
        masks = masks.gather(1, index[..., None, None].expand(-1, -1, *masks.shape[-2:]))
    return Found(scores, labels, None, masks)


class ExportableSparseInst(CanvasExportable):
    """A `SparseInst` as one graph."""

    free_size = True
    eight_bit_modules = ("backbone", "encoder", "decoder.instance_branch.convs", "decoder.mask_branch.convs")

    @property
    def detections(self) -> int:
        return self.model.max_detections

    def threshold_moved(self, by: float):
        moved = copy.copy(self.model)
        moved.score_threshold += by
        return moved

    def found(self, images: ImageList, image_size: torch.Tensor) -> Found:
        return best_slots(self.model.outputs(images), self.model)


class ExportableSparseInstHeads(OfRCNN, CanvasExportable):
    """A GeneralizedRCNN with `SparseInstHeads` as one graph. Its boxes are tight in the image that the network sees."""

    @property
    def detections(self) -> int:
        return self.model.roi_heads.max_detections

    @property
    def mask_threshold(self) -> float:
        return self.model.roi_heads.mask_threshold

    def threshold_moved(self, by: float):
        moved = shared_copy(self.model)
        moved.roi_heads = copy.copy(self.model.roi_heads)
        moved.roi_heads.score_threshold += by
        return moved

    def mask_information(self) -> dict:
        heads = self.model.roi_heads
        stride = round(heads.mask_stride * heads.decoder.scale_factor)  # of the map that the encoder reads
        unit = max(stride, self.size_divisibility)
        return {"form": "canvas", "threshold": self.mask_threshold, "size_divisibility": unit}

    def found(self, images: ImageList, image_size: torch.Tensor) -> Found:
        heads = self.model.roi_heads
        return best_slots(heads._outputs(self.model.backbone(images.tensor))[0], heads)

    def finish(self, found: Found, canvas: tuple, crop: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, ...]:
        canvas = tuple(round(cells * self.model.roi_heads.mask_stride) for cells in found.masks.shape[-2:])
        image = sides(crop, canvas)
        boxes = []
        for masks in found.masks.split(BOXES_AT_ONCE, dim=1):
            masks = F.interpolate(masks, canvas, mode="bilinear", align_corners=False)[..., : image[0], : image[1]]
            boxes.append(tight_boxes(masks > self.mask_threshold))
        boxes, scores = clipped_boxes(torch.cat(boxes, dim=1), found.scores, crop, size)
        if self.compact:
            return boxes, scores, found.labels, found.masks
        return boxes, scores, found.labels, resize_masks(found.masks, canvas, image, sides(size)) > self.mask_threshold
