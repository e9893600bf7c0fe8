"""
Inference as a function of tensors. N images, Q slots an image, K classes, h x w cells of a mask, H x W pixels.
"""

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import nn

from .postprocessing import resize_masks

__all__ = ["Exportable"]


class Exportable(nn.Module):
    """
    Base of exportable models: inference from raw pixels to masks of the requested size, as one graph.

    The results equal those of ``model(batched_inputs)``, but the outputs have a fixed size: all Q slots, in order.
    A slot whose class score is NaN or does not pass the model's threshold gets the score 0. The caller drops these and
    keeps the ``max_detections`` best.

    Subclasses write ``slots``.

    Args:
        model: an `InstanceSegmenter` with the attributes ``score_threshold``, on the class score, strictly above, and
            ``max_detections``. What its ``infer`` finds has a field slots (D,).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def slots(self, images: ImageList) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        What the model predicts in preprocessed images.

        Returns:
            class scores (N, Q, K) float32; scores (N, Q) of a detection of the best class; masks (N, Q, h, w),
            probabilities on the padded canvas.
        """
        raise NotImplementedError

    def forward(self, images: torch.Tensor, image_size: torch.Tensor, output_size: torch.Tensor):
        """
        Args:
            images: (N, 3, H, W) uint8 or float, RGB, 0-255, not normalised, of any height and width; they are padded
                here as the model needs it.
            image_size: (2,) int64, height and width of every image without padding; the image starts at the top left
                corner. The values of the padding do not matter.
            output_size: (2,) int64, height and width of the returned masks.

        Returns:
            scores (N, Q) float32; labels (N, Q) int64, the best classes; masks (N, Q, *output_size) bool.
        """
        model = self.model
        # Positive numbers only: ONNX's integer division rounds to zero, not down.
        unit = max(1, model.size_divisibility)
        canvas = tuple((side + unit - 1) // unit * unit for side in images.shape[-2:])
        class_scores, found, masks = self.slots(ImageList(self._prepared(images, image_size, canvas), []))
        best, labels = class_scores.max(-1)
        passes = (best > model.score_threshold) & (found > 0)  # nan is not above 0
        scores = torch.where(passes, found, torch.zeros_like(found))
        crop, size = image_size.tolist(), output_size.tolist()
        for side, limit in zip(crop, canvas):
            torch._check(side >= 1)
            torch._check(side <= limit)
        for side in size:
            torch._check(side >= 1)
        return scores, labels, resize_masks(masks, canvas, crop, size) > model.mask_threshold

    def _prepared(self, images: torch.Tensor, image_size: torch.Tensor, canvas: tuple) -> torch.Tensor:
        """Normalised images with zeros in the padding: (N, 3, *canvas)."""
        x = images.float() if self.model.input_format == "RGB" else images.float().flip(1)
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=x.device) < image_size[0]
        columns = torch.arange(width, device=x.device) < image_size[1]
        x = torch.where(rows[:, None] & columns, self.model.normalize(x), 0.0)
        return F.pad(x, (0, canvas[1] - width, 0, canvas[0] - height))
