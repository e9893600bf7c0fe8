"""EmbedMask as a function of tensors. N images, D detections an image, h x w cells of the pixel embedding."""

import math

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList

from ...ops import traceable
from ..exportable import CanvasExportable, Found, clipped_boxes, sides
from ..proposal_generator.exportable import (
    FCOS_EIGHT_BIT_MODULES,
    detect_fixed,
    number_of_detections,
    with_threshold_moved,
)
from .window_masks import detection_windows


class ExportableEmbedMask(CanvasExportable):
    """An `EmbedMask` as one graph."""

    eight_bit_modules = ("backbone", *FCOS_EIGHT_BIT_MODULES, "pixel_head.tower")

    @property
    def nms_threshold(self) -> float:
        return self.model.proposal_generator.limits_test.nms_threshold

    @property
    def detections(self) -> int:
        return number_of_detections(self.model.proposal_generator)

    @property
    def threshold(self) -> float:
        """The least value of a cell inside a mask."""
        return math.log(self.model.mask_threshold) if self.model.log_masks else self.model.mask_threshold

    def threshold_moved(self, by: float):
        return with_threshold_moved(self.model, by)

    def mask_information(self) -> dict:
        return {"form": "canvas", "threshold": self.threshold, "stride": self.model.stride}

    def found(self, images: ImageList, image_size: torch.Tensor) -> Found:
        model = self.model
        outputs, pixels = model._outputs(images)
        found = detect_fixed(model.proposal_generator, outputs, image_size)
        shape = found.scores.shape
        embeddings, margins = (x.unflatten(0, shape) for x in model._proposals(outputs, found.rows.flatten(), images))
        if model.proposal_head.fixed_margin is not None:
            margins = torch.full_like(margins, model.proposal_head.fixed_margin)
        values = traceable.mask_prob(pixels, embeddings, margins)
        values, fill = (values, -10.0) if model.log_masks else (values.exp(), 0.0)
        height, width = pixels.shape[-2:]
        windows = detection_windows(found.boxes.flatten(0, 1), model.stride, model.log_masks, (height, width))
        left, top, right, bottom = windows.unflatten(0, shape).unsqueeze(-1).unbind(2)
        x, y = torch.arange(width, device=windows.device), torch.arange(height, device=windows.device)
        columns, rows = (x >= left) & (x < right), (y >= top) & (y < bottom)
        values = torch.where(rows[..., :, None] & columns[..., None, :], values, fill)
        return Found(found.scores, found.classes, found.boxes, values)

    def finish(self, found: Found, canvas: tuple, crop: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, ...]:
        boxes = found.boxes
        if self.model.inclusive:  # to Detectron2's boxes: one pixel of the output more, see `EmbedMask._exclusive`
            pixel = (crop / size).flip(0)
            boxes = boxes + torch.cat([torch.zeros_like(pixel), pixel])
        boxes, scores = clipped_boxes(boxes, found.scores, crop, size)
        if self.compact:
            return boxes, scores, found.labels, found.masks
        cells = found.masks.shape[-2:]
        to, of = sides(size), sides(crop)
        whole = [(count * self.model.stride * t + f - 1) // f for count, t, f in zip(cells, to, of)]
        masks = F.interpolate(found.masks, whole, mode="bilinear", align_corners=False)
        return boxes, scores, found.labels, masks[..., : to[0], : to[1]] > self.threshold
