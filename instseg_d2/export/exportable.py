"""
SparseInst as a function of tensors alone. B images, N instance slots, h x w the masks' size at stride 4.
"""

import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import nn

from ..errors import ConfigError
from ..modeling.postprocessing import rescored, resized
from ..modeling.sparseinst import SparseInst
from ..modeling.sparseinst.sparseinst import class_scores

__all__ = ["INPUTS", "OUTPUTS", "ExportableSparseInst", "exportable"]

INPUTS = ("images", "image_size", "output_size")
OUTPUTS = ("scores", "labels", "masks")


class ExportableSparseInst(nn.Module):
    """
    A SparseInst whose inference, from raw pixels to masks of the wanted size, is one graph.

    The numbers are those of ``model(batched_inputs)``. Every one of the N slots is put out, in the order of the slots,
    so the outputs have a fixed size: a slot whose class score does not pass the model's threshold gets the score 0 (as
    an empty mask does). Dropping these and keeping the MAX_DETECTIONS best is left to the caller.
    """

    def __init__(self, model: SparseInst):
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor, image_size: torch.Tensor, output_size: torch.Tensor):
        """
        Args:
            images: (B, 3, H, W) uint8 or float, RGB, 0-255, not normalised; any height and width (above 32 in a file
                of free size): padding to a multiple of 32 happens here.
            image_size: (2,) int64, the rows and columns of every image that are picture, from the top left corner; the
                rest is padding whose values do not matter.
            output_size: (2,) int64, height and width of the wanted masks.

        Returns:
            scores (B, N) float32, sqrt(class * objectness) of the best class times the mean mask probability, or 0;
            labels (B, N) int64, the best classes; masks (B, N, *output_size) bool.
        """
        model = self.model
        # Of positive numbers: ONNX's integer division rounds to zero, not down.
        unit = model.size_divisibility
        canvas = tuple((side + unit - 1) // unit * unit for side in images.shape[-2:])
        outputs = model.outputs(ImageList(self._prepared(images, image_size, canvas), []))
        scores, labels = class_scores(outputs).max(-1)
        masks = outputs["mask_logits"].float().sigmoid()
        found = rescored(scores, masks, model.mask_threshold)
        scores = torch.where(scores > model.score_threshold, found, torch.zeros_like(found))
        crop, size = image_size.tolist(), output_size.tolist()
        for side, limit in zip(crop, canvas):
            torch._check(side >= 1)
            torch._check(side <= limit)
        for side in size:
            torch._check(side >= 1)
        return scores, labels, resized(masks, canvas, crop, size) > model.mask_threshold

    def _prepared(self, images: torch.Tensor, image_size: torch.Tensor, canvas: tuple) -> torch.Tensor:
        """Normalised, with zeros beyond the picture, (B, 3, *canvas)."""
        x = images.float() if self.model.input_format == "RGB" else images.float().flip(1)
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=x.device) < image_size[0]
        columns = torch.arange(width, device=x.device) < image_size[1]
        x = torch.where(rows[:, None] & columns, self.model.normalize(x), 0.0)
        return F.pad(x, (0, canvas[1] - width, 0, canvas[0] - height))


def exportable(model: nn.Module, format: str) -> ExportableSparseInst:
    """
    The model as one graph.

    Raises:
        ConfigError: there is no such graph for this method, or not in this format or on this device.
    """
    if not isinstance(model, SparseInst):
        raise ConfigError(f"{type(model).__name__} cannot be exported yet: only SparseInst can.")
    if model.device.type != "cpu":
        raise ConfigError(f"models are exported on the CPU: set MODEL.DEVICE to cpu; it is {model.device}.")
    if format == "onnx" and any("Deform" in type(module).__name__ for module in model.modules()):
        raise ConfigError(
            "deformable convolutions cannot be exported to ONNX: use --format pt2, or a config without them."
        )
    return ExportableSparseInst(model).eval()
