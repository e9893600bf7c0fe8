"""ISTR as a function of tensors. N images."""

import torch
from detectron2.structures import ImageList
from torch import nn

from ..exportable import CropExportable, Found
from .embedding import require_fitted


class ExportableISTR(CropExportable):
    """An `ISTR` as one graph."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        require_fitted(model.mask_embedding)

    @property
    def detections(self) -> int:
        return self.model.max_detections

    def found(self, images: ImageList, image_size: torch.Tensor) -> Found:
        found = self.model._detect(ImageList(images.tensor, image_size.expand(len(images.tensor), 2)))
        boxes, masks = found.decode_masks(found.stages[-1], found.queries)
        valid = found.scores.isfinite() & boxes.isfinite().all(-1)
        boxes = torch.where(valid[..., None], boxes, 0.0)
        return Found(torch.where(valid, found.scores, 0.0), found.classes, boxes, masks[:, :, 0])
