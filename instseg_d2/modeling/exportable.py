"""
Inference as a function of tensors, with outputs of fixed sizes. N images, D detections an image, R x R cells of a crop,
h x w cells of a map, H x W pixels.
"""

import copy
from typing import NamedTuple, Optional

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import ImageList
from torch import nn
from torchvision.ops import nms

from .postprocessing import Combination, resize_masks

__all__ = ["CanvasExportable", "CropExportable", "Exportable", "Found", "non_maximum_suppression"]


class Found(NamedTuple):
    """
    Detections of preprocessed images, as many for every image.

    Attributes:
        scores: (N, D) float32, 0 for what is no detection.
        labels: (N, D) int64.
        boxes: (N, D, 4) float32 x1, y1, x2, y2 in input pixels; None: the tight boxes of the masks.
        masks: crops (N, D, R, R) inside windows, or maps (N, D, h, w) of the padded input; None: there are no masks.
        windows: (N, D, 4) the boxes that crops fill, in input pixels; None: the clipped boxes.
        semantic: (N, classes, H, W) logits of a panoptic model's semantic classes, of the padded input.
    """

    scores: torch.Tensor
    labels: torch.Tensor
    boxes: Optional[torch.Tensor] = None
    masks: Optional[torch.Tensor] = None
    windows: Optional[torch.Tensor] = None
    semantic: Optional[torch.Tensor] = None


class Exportable(nn.Module):
    """
    Base of exportable models: inference from raw pixels to detections at the requested size, as one graph.

    The results equal those of ``model(batched_inputs)``, but there are always D detections. What is none has score 0.

    Subclasses write ``found`` and, for masks of another form, `finish`.

    Args:
        model: an `InstanceSegmenter`; for others the properties below say what it calls things.

    Attributes:
        compact: masks are given in the compact form instead of at full size.
        compact_form: "crops" or "canvas", the compact form of the masks.
        free_size: the graph also fits batches and sizes other than the traced ones.
        fills_canvas: images must have the size of the input, without padding, also none that the model needs.
        detections: D is at most this.
        nms_threshold: IoU of the model's NMS; None: it has none.
        preprocess_name: the model's method that makes the padded `ImageList` of a batch.
        combination: how a panoptic model merges instances and semantic map ("sem_seg"); None: it is not panoptic.
        eight_bit_modules: paths in the model of the modules whose convolutions and linear layers may have 8 bits. The
            last layers are none of them: they decide about small differences of scores, boxes and masks.
    """

    compact_form = "crops"
    free_size = False
    fills_canvas = False
    nms_threshold: Optional[float] = None
    preprocess_name = "preprocess"
    combination: Optional[Combination] = None
    eight_bit_modules: tuple[str, ...] = ("backbone",)

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.compact = False

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of what `forward` returns."""
        return ("boxes", "scores", "labels", "masks")

    @property
    def detections(self) -> int:
        raise NotImplementedError

    @property
    def size_divisibility(self) -> int:
        """Height and width of the padded input are multiples of this."""
        return self.model.size_divisibility

    @property
    def mask_threshold(self) -> float:
        """The least probability of a mask's pixel."""
        return self.model.mask_threshold

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """The input of the network (..., 3, H, W) from channels of 0-255."""
        return self.model.normalize(images)

    def threshold_moved(self, by: float) -> nn.Module:
        """A copy of the model whose threshold is higher by a little; it shares the weights. Without one: the model."""
        return self.model

    def mask_information(self) -> dict:
        """What is needed to make full-size masks of the compact ones, as plain data."""
        raise NotImplementedError

    def found(self, images: ImageList, image_size: torch.Tensor) -> Found:
        """
        What the model finds in preprocessed images.

        Args:
            image_size: (2,) int64, height and width of every image without padding.
        """
        raise NotImplementedError

    def finish(self, found: Found, canvas: tuple, crop: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Detections in input pixels -> what `forward` returns.

        Args:
            canvas: (H, W) of the padded input; crop: (2,) of the image in it; size: (2,) of the output.
        """
        raise NotImplementedError

    def forward(self, images: torch.Tensor, image_size: torch.Tensor, output_size: torch.Tensor):
        """
        Args:
            images: (N, 3, H, W) uint8 or float, RGB, 0-255, not normalised, of any height and width; they are padded
                here as the model needs it.
            image_size: (2,) int64, height and width of every image without padding; the image starts at the top left
                corner. The values of the padding do not matter.
            output_size: (2,) int64, height and width of the output image.

        Returns:
            boxes (N, D, 4) float32 x1, y1, x2, y2 in output pixels; scores (N, D) float32; labels (N, D) int64; masks
            (N, D, *output_size) bool, or in the compact form; further outputs as `output_names` says.
        """
        # Positive numbers only: ONNX's integer division rounds to zero, not down.
        unit = 1 if self.fills_canvas else max(1, self.size_divisibility)
        canvas = tuple((side + unit - 1) // unit * unit for side in images.shape[-2:])
        prepared = ImageList(self._prepared(images, image_size, canvas), [])
        found = self.found(prepared, image_size)
        return self.finish(found, canvas, image_size, output_size)

    def _prepared(self, images: torch.Tensor, image_size: torch.Tensor, canvas: tuple) -> torch.Tensor:
        """Normalised images with zeros in the padding: (N, 3, *canvas)."""
        x = images.float() if self.model.input_format == "RGB" else images.float().flip(1)
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=x.device) < image_size[0]
        columns = torch.arange(width, device=x.device) < image_size[1]
        x = torch.where(rows[:, None] & columns, self.normalize(x), 0.0)
        return F.pad(x, (0, canvas[1] - width, 0, canvas[0] - height))


class CropExportable(Exportable):
    """Base for methods whose masks are crops inside boxes."""

    def mask_information(self) -> dict:
        return {"form": "crops", "threshold": self.mask_threshold}

    def finish(self, found: Found, canvas: tuple, crop: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, ...]:
        boxes, scores = clipped_boxes(found.boxes, found.scores, crop, size)
        outputs = [boxes, scores, found.labels]
        if found.masks is not None:
            masks = found.masks
            outputs.append(masks if self.compact else pasted(masks, boxes, sides(size)) >= self.mask_threshold)
        if found.semantic is not None:
            outputs.append(semantic_map(found.semantic, sides(crop, found.semantic.shape[-2:]), sides(size)))
        return tuple(outputs)


class CanvasExportable(Exportable):
    """Base for methods whose masks are maps of the padded input, and whose boxes are the tight boxes of the masks."""

    compact_form = "canvas"

    def mask_information(self) -> dict:
        unit = max(1, self.size_divisibility)
        return {
            "form": "canvas",
            "threshold": self.mask_threshold,
            "size_divisibility": unit,
            "tight_boxes": True,  # in the compact form the graph knows them only roughly
        }

    def finish(self, found: Found, canvas: tuple, crop: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.compact:
            boxes = tight_boxes(found.masks > self.mask_threshold)
            pixels = boxes.new_tensor([now / cells for now, cells in zip(canvas, found.masks.shape[-2:])])
            scale = (pixels * size / crop).flip(0).repeat(2)
            return boxes * scale, found.scores, found.labels, found.masks
        masks = resize_masks(found.masks, canvas, sides(crop, canvas), sides(size)) > self.mask_threshold
        return tight_boxes(masks), found.scores, found.labels, masks


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy that shares the weights, and whose parts can be replaced."""
    copied = copy.copy(module)
    copied._modules = dict(module._modules)
    return copied


def sides(size: torch.Tensor, limits: Optional[tuple] = None) -> list:
    """A size (2,) as two integers that a graph can compute with, each at least 1 and at most its limit."""
    result = size.tolist()
    for index, side in enumerate(result):
        torch._check(side >= 1)
        if limits is not None:
            torch._check(side <= limits[index])
    return result


def clipped_boxes(boxes: torch.Tensor, scores: torch.Tensor, crop: torch.Tensor, size: torch.Tensor):
    """
    Detectron2's ``detector_postprocess`` of boxes (N, D, 4) with scores (N, D): scaled from the image ``crop`` (H, W)
    to the output ``size``, clipped to it; the scores of empty boxes are 0.
    """
    ends = size.to(boxes.dtype).flip(0).repeat(2)
    boxes = torch.minimum((boxes * (ends / crop.flip(0).repeat(2))).clamp(min=0), ends)
    filled = (boxes[..., 2:] > boxes[..., :2]).all(-1)
    return boxes, torch.where(filled, scores, 0.0)


def pasted(crops: torch.Tensor, boxes: torch.Tensor, size: list) -> torch.Tensor:
    """
    Crops (N, D, R, R) in their boxes (N, D, 4) on images (N, D, *size), bilinearly, 0 outside.

    Bilinear weights are products of one for the row and one for the column, so this is two products of matrices.
    """
    cells = torch.arange(crops.shape[-1], device=crops.device)

    def weights(low, high, side):  # (N, D, side, R)
        pixels = torch.arange(side, device=crops.device) + 0.5
        place = (pixels - low[..., None]) / (high - low).clamp(min=1e-6)[..., None] * len(cells) - 0.5
        return (1 - (place[..., None] - cells).abs()).clamp(min=0)

    rows = weights(boxes[..., 1], boxes[..., 3], size[0])
    columns = weights(boxes[..., 0], boxes[..., 2], size[1])
    return rows @ crops @ columns.transpose(-1, -2)


def semantic_map(logits: torch.Tensor, crop: list, size: list) -> torch.Tensor:
    """
    The best class of every pixel, as Detectron2's ``sem_seg_postprocess`` and argmax give it: (N, *size) int64.

    Args:
        logits: (N, classes, H, W) of the padded input; crop: (H, W) of the image in it; size: (H, W) of the output.
    """
    image = logits[..., : crop[0], : crop[1]]
    return F.interpolate(image, size, mode="bilinear", align_corners=False).argmax(1)


def tight_boxes(masks: torch.Tensor) -> torch.Tensor:
    """As `masks_to_boxes`, of boolean masks (N, D, H, W): (N, D, 4) float32; zeros for an empty mask."""

    def span(hits):  # (N, D, side)
        positions = torch.arange(hits.shape[-1], device=hits.device)
        last = torch.where(hits, positions + 1, 0).amax(-1)
        first = torch.where(hits, positions, hits.shape[-1]).amin(-1)
        return torch.minimum(first, last), last

    (x1, x2), (y1, y2) = span(masks.any(-2)), span(masks.any(-1))
    return torch.stack([x1, y1, x2, y2], dim=-1).float()


def non_maximum_suppression(boxes, scores, labels, threshold: float) -> torch.Tensor:
    """
    Greedy NMS of each image, among boxes of the same label.

    The boxes of each label are moved to a place of their own. A square grid of places keeps the coordinates small,
    because large ones are rounded. All invalid boxes share one place, so that the first suppresses the others.

    Args:
        boxes: (N, D, 4) finite; scores: (N, D), below 0 for an invalid box; labels: (N, D).
        threshold: IoU above which the worse one is suppressed.

    Returns:
        (N, D) bool: valid and not suppressed.
    """
    # An IoU is float32. ONNX rounds the threshold to float32, too, and should not round it up.
    rounded = np.float32(threshold)
    threshold = float(rounded if float(rounded) <= threshold else np.nextafter(rounded, np.float32(0)))
    keeps = []
    for box, score, label in zip(boxes.unbind(), scores.unbind(), labels.unbind()):
        valid = score >= 0
        side = torch.where(valid[:, None], box, 0.0)
        side = side.max() - side.min() + 1
        columns = (label.max() + 1).float().sqrt().ceil()
        row = (label / columns).floor()
        place = torch.stack([label - row * columns, row], dim=1).repeat(1, 2) * side
        unit = torch.tensor([0.0, 0.0, 1.0, 1.0], device=box.device)
        apart = torch.where(valid[:, None], box + place, unit - 4 * side)
        chosen = nms(apart, score, threshold)
        keeps.append(torch.zeros_like(valid).index_fill(0, chosen, True) & valid)
    return torch.stack(keeps)
