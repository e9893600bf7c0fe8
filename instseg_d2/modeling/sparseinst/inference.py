"""
Converts the decoder's predictions to detections.

N images, Q slots per image, D detections, K classes, h x w cells of the predicted masks, H x W pixels.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import BitMasks, Instances, ROIMasks

from ..postprocessing import rescore, resize_in_chunks, topk_in_order


def class_scores(outputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """sqrt(class * objectness) in float32: (N, Q, K)."""
    classes, objectness = (outputs[name].float().sigmoid() for name in ("class_logits", "objectness_logits"))
    return (classes * objectness[..., None]).sqrt()


def detections(
    outputs: dict[str, torch.Tensor],
    image_sizes: Sequence[tuple],
    score_threshold: float,
    mask_threshold: float,
    max_detections: int,
) -> list[Instances]:
    """
    The best slots of each image.

    Args:
        outputs: the decoder's predictions.
        image_sizes: (H, W) without padding.
        score_threshold: minimum of sqrt(class * objectness) before rescoring, exclusive.
        mask_threshold: mask threshold for rescoring.
        max_detections: number of detections kept per image.

    Returns:
        one Instances per image with scores, pred_classes, slots (D,) and pred_masks (D, h, w), probabilities on the
        padded canvas.
    """
    results = []
    best = class_scores(outputs).max(-1)
    for size, score, classes, masks in zip(image_sizes, *best, outputs["mask_logits"]):
        slots = (score > score_threshold).nonzero()[:, 0]
        result = Instances(size)
        result.pred_masks = masks[slots].float().sigmoid()
        result.scores = rescore(score[slots], result.pred_masks, mask_threshold)
        result.pred_classes = classes[slots]
        result.slots = slots
        if len(result) > max_detections:
            result = result[topk_in_order(result.scores, max_detections)]
        results.append(result)
    return results


class CanvasMasks(ROIMasks):
    """
    Whole-image masks in place of Detectron2's ROIMasks, so that its postprocessing resizes them instead of pasting.
    """

    def __init__(self, tensor: torch.Tensor, canvas: tuple, crop: tuple, threshold: float):
        """
        Args:
            tensor: (D, h, w) probabilities that cover the canvas.
            canvas: (H, W) of the padded input.
            crop: (H, W) of the input without padding.
            threshold: pixels strictly above it belong to the mask.
        """
        super().__init__(tensor)
        self.canvas = canvas
        self.crop = crop
        self.threshold = threshold

    def _like(self, tensor: torch.Tensor) -> "CanvasMasks":
        return CanvasMasks(tensor, self.canvas, self.crop, self.threshold)

    def to(self, *args, **kwargs) -> "CanvasMasks":
        return self._like(self.tensor.to(*args, **kwargs))

    def __getitem__(self, item) -> "CanvasMasks":
        return self._like(super().__getitem__(item).tensor)

    def resize(self, size: tuple) -> torch.Tensor:
        """Resize and threshold the masks: (D, *size) bool."""
        return resize_in_chunks(self.tensor, self.canvas, self.crop, size, self.threshold)

    def to_bitmasks(self, boxes, height: int, width: int, threshold: float = 0.5) -> BitMasks:
        """Resize the masks to ``height`` and ``width``; ``boxes`` and ``threshold`` are not used."""
        return BitMasks(self.resize((height, width)))
