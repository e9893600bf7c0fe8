"""FCOS as a function of tensors. N images, D detections an image."""

import copy
import dataclasses
from typing import NamedTuple

import torch
from detectron2.structures import ImageList

from ..exportable import CropExportable, Found, non_maximum_suppression, shared_copy
from .fcos import FCOS
from .fcos_head import HeadOutputs
from .fcos_inference import candidates, decode

FCOS_EIGHT_BIT_MODULES = tuple(f"proposal_generator.head.{name}_tower" for name in ("shared", "class", "box"))


class FixedDetections(NamedTuple):
    """`fcos_inference.detect` with D detections for every image: (N, D) scores, classes and rows; boxes (N, D, 4)."""

    scores: torch.Tensor
    classes: torch.Tensor
    rows: torch.Tensor
    boxes: torch.Tensor


def detect_fixed(fcos: FCOS, outputs: HeadOutputs, image_size: torch.Tensor) -> FixedDetections:
    """
    The best boxes of every image, best first; what is none has score 0.

    Args:
        image_size: (2,) height and width of every image without padding.
    """
    limits = fcos.limits_test
    scores, rows, classes = candidates(outputs, limits)
    boxes = decode(outputs, rows.flatten()).view(*rows.shape, 4)
    boxes = torch.where((scores >= 0)[..., None], boxes, 0.0)
    if limits.clip:
        ends = (image_size.flip(0) - int(limits.inclusive)).to(boxes.dtype)
        boxes = torch.minimum(boxes.clamp(min=0), torch.cat([ends, ends]))
    if limits.nms_threshold > 0:
        longer = torch.tensor([0.0, 0.0, 1.0, 1.0], device=boxes.device) * float(limits.inclusive)
        keep = non_maximum_suppression(boxes + longer, scores, classes, limits.nms_threshold)
        scores = torch.where(keep, scores, -1.0)
    scores, index = scores.topk(min(number_of_detections(fcos), scores.shape[1]), dim=1)
    boxes = boxes.gather(1, index[..., None].expand(-1, -1, 4))
    scores = scores.clamp(min=0)
    scores = scores.sqrt() if limits.sqrt_scores else scores
    return FixedDetections(scores, classes.gather(1, index), rows.gather(1, index), boxes)


def number_of_detections(fcos: FCOS) -> int:
    """D, the most detections that FCOS keeps of an image."""
    limits = fcos.limits_test
    return limits.post_nms_topk if limits.post_nms_topk > 0 else limits.pre_nms_topk * len(fcos.in_features)


def with_threshold_moved(model, by: float):
    """A copy of a model whose FCOS has a higher threshold; it shares the weights."""
    moved = shared_copy(model)
    moved.proposal_generator = copy.copy(model.proposal_generator)
    limits = model.proposal_generator.limits_test
    moved.proposal_generator.limits_test = dataclasses.replace(limits, score_threshold=limits.score_threshold + by)
    return moved


class ExportableFCOS(CropExportable):
    """An `FCOSDetector` as one graph: boxes, scores and labels."""

    eight_bit_modules = ("backbone", *FCOS_EIGHT_BIT_MODULES)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("boxes", "scores", "labels")

    @property
    def detections(self) -> int:
        return number_of_detections(self.model.proposal_generator)

    @property
    def nms_threshold(self) -> float:
        return self.model.proposal_generator.limits_test.nms_threshold

    def threshold_moved(self, by: float):
        return with_threshold_moved(self.model, by)

    def found(self, images: ImageList, image_size: torch.Tensor) -> Found:
        fcos = self.model.proposal_generator
        outputs = fcos.outputs(self.model.backbone(images.tensor))
        found = detect_fixed(fcos, outputs, image_size)
        return Found(found.scores, found.classes, found.boxes)
