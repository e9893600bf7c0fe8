"""BlendMask as a function of tensors. N images, D detections an image, R x R cells of a mask."""

from typing import Optional

import torch
from detectron2.structures import ImageList

from ..exportable import Found
from ..postprocessing import Combination
from ..proposal_generator.exportable import ExportableFCOS, detect_fixed


class ExportableBlendMask(ExportableFCOS):
    """A `BlendMask` as one graph; a panoptic one also gives its semantic map."""

    eight_bit_modules = (
        *ExportableFCOS.eight_bit_modules,
        *(f"basis_module.{name}" for name in ("refine", "tower", "upsampled_conv")),
    )

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("boxes", "scores", "labels", "masks", *(("sem_seg",) if self.combination is not None else ()))

    @property
    def combination(self) -> Optional[Combination]:
        return self.model.combination if self.model.sem_seg_head is not None else None

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
        masks = masks.unflatten(0, (count, detections))
        semantic = None if model.sem_seg_head is None else model.sem_seg_head(features)[0]
        return Found(found.scores, found.classes, found.boxes, masks, semantic=semantic)
