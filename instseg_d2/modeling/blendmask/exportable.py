"""BlendMask as a function of tensors. N images, D detections an image, R x R cells of a mask."""

import torch
from detectron2.structures import ImageList
from torch import nn

from ..exportable import Found
from ..proposal_generator.exportable import ExportableFCOS, detect_fixed


class ExportableBlendMask(ExportableFCOS):
    """A `BlendMask` as one graph, without the semantic map of a panoptic one."""

    def __init__(self, model: nn.Module):
        super().__init__(model)
        if model.sem_seg_head is not None:
            raise ValueError(
                "a panoptic BlendMask cannot be exported; set MODEL.PANOPTIC_FPN.COMBINE.ENABLED to False for the "
                "instances alone."
            )

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("boxes", "scores", "labels", "masks")

    def found(self, images: ImageList, image_size: torch.Tensor) -> Found:
        model = self.model
        features = model.backbone(images.tensor)
        fcos = model.proposal_generator
        outputs = fcos.outputs(features)
        found = detect_fixed(fcos, outputs, image_size)
        count, detections = found.scores.shape
        image = torch.arange(count, device=image_size.device).repeat_interleave(detections)
        attention = model.attention(outputs, found.rows.flatten())
        masks = model.blender(model.basis_module(features), found.boxes.flatten(0, 1), image, attention).sigmoid()
        return Found(found.scores, found.classes, found.boxes, masks.unflatten(0, (count, detections)))
