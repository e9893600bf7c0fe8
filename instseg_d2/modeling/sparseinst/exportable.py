"""SparseInst as a function of tensors."""

import copy

import torch
from detectron2.structures import ImageList

from ..exportable import CanvasExportable, Found
from ..postprocessing import rescore
from .inference import class_scores


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
        outputs = self.model.outputs(images)
        best, labels = class_scores(outputs).max(-1)
        masks = outputs["mask_logits"].float().sigmoid()
        scores = rescore(best, masks, self.model.mask_threshold)
        scores = torch.where((best > self.model.score_threshold) & (scores > 0), scores, 0.0)  # NaN is not above 0
        if scores.shape[1] > self.model.max_detections:
            scores, index = scores.topk(self.model.max_detections, dim=1)
            labels = labels.gather(1, index)
            masks = masks.gather(1, index[..., None, None].expand(-1, -1, *masks.shape[-2:]))
        return Found(scores, labels, None, masks)
