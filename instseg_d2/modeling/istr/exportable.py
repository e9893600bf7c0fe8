"""ISTR as a function of tensors. N images."""

import torch
from detectron2.structures import ImageList
from torch import nn

from ..exportable import CropExportable, Found
from ..image_mask_head import rescale_threshold
from ..rcnn_exportable import OfRCNN
from .embedding import require_fitted
from .inference import Detections


def fixed_detections(found: Detections) -> Found:
    """The detections of the last stage; those that are not finite have score 0."""
    boxes, masks = found.decode_masks(found.stages[-1], found.queries)
    valid = found.scores.isfinite() & boxes.isfinite().all(-1)
    boxes = torch.where(valid[..., None], boxes, 0.0)
    return Found(torch.where(valid, found.scores, 0.0), found.classes, boxes, masks[:, :, 0])


def with_sizes(images: ImageList, image_size: torch.Tensor) -> ImageList:
    """The images, all of one size (2,)."""
    return ImageList(images.tensor, image_size.expand(len(images.tensor), 2))


class ExportableISTR(CropExportable):
    """An `ISTR` as one graph."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        require_fitted(model.mask_embedding)

    @property
    def detections(self) -> int:
        return self.model.max_detections

    def found(self, images: ImageList, image_size: torch.Tensor) -> Found:
        return fixed_detections(self.model._detect(with_sizes(images, image_size)))


class ExportableISTRHeads(OfRCNN, CropExportable):
    """A GeneralizedRCNN with `ISTRHeads` as one graph."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        require_fitted(model.roi_heads.mask_embedding)

    @property
    def detections(self) -> int:
        return self.model.roi_heads.max_detections

    def found(self, images: ImageList, image_size: torch.Tensor) -> Found:
        heads, features = self.model.roi_heads, self.model.backbone(images.tensor)
        found = fixed_detections(heads.detect(with_sizes(images, image_size), features))
        return found._replace(masks=rescale_threshold(found.masks, heads.mask_threshold))
