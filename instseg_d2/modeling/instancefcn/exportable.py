"""InstanceFCN as a function of tensors. N images, n windows an image and scale, D segments an image, m mask size."""

import torch
import torch.nn.functional as F
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import ImageList
from torch import nn

from ...ops import traceable
from ..exportable import CropExportable, Found, non_maximum_suppression, pasted, sides, tight_boxes
from ..postprocessing import rescore
from ..rcnn_exportable import (
    Proposals,
    best_boxes,
    check_heads,
    classify,
    heads_with_threshold_moved,
    number_of_boxes,
)
from .inference import ProposalLimits
from .windows import inside_image, window_corners


def resize_weights(cells: int, after: int, padded: int) -> torch.Tensor:
    """
    How PyTorch's antialiased bilinear resizing weighs the ``cells`` pixels of one axis for ``after`` pixels: (padded,
    cells), with zeros in the rows of the padding. As a product of matrices it runs everywhere.
    """
    ratio = cells / after
    centre = (torch.arange(padded) + 0.5) * ratio
    weights = (1 - ((torch.arange(cells) + 0.5 - centre[:, None]) / max(ratio, 1.0)).abs()).clamp(min=0)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1e-6)
    return weights * (torch.arange(padded) < after)[:, None]


def picked(index: torch.Tensor, *values: torch.Tensor):
    """The rows (N, D) of values (N, n, ...)."""
    for x in values:
        yield x.gather(1, index.view(*index.shape, *[1] * (x.dim() - 2)).expand(-1, -1, *x.shape[2:]))


class ExportableInstanceFCN(CropExportable):
    """
    An `InstanceFCN`, with ROI heads or without, as one graph, for images that fill the canvas: its size gives those of
    all scales.
    """

    fills_canvas = True
    eight_bit_modules = (
        "backbone",
        "proposal_generator.head.instance_conv",
        "proposal_generator.head.objectness_conv",
    )

    def __init__(self, model: nn.Module):
        super().__init__(model)
        if model.roi_heads is not None:
            check_heads(model.roi_heads)

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("boxes", "scores", "labels", "masks", *(("windows",) if self.compact else ()))

    @property
    def nms_threshold(self) -> float:
        heads = self.model.roi_heads
        return heads.box_predictor.test_nms_thresh if heads else self.model.proposal_generator.limits.nms_threshold

    @property
    def detections(self) -> int:
        return number_of_boxes(self.model.roi_heads) if self.model.roi_heads else self._limits.max_proposals

    @property
    def _limits(self) -> ProposalLimits:
        return self.model.proposal_generator.limits

    def threshold_moved(self, by: float) -> nn.Module:
        return heads_with_threshold_moved(self.model, by) if self.model.roi_heads else self.model

    def mask_information(self) -> dict:
        return {"form": "crops", "threshold": 0.5, "tight_boxes": True}

    def found(self, images: ImageList, image_size: torch.Tensor) -> Found:
        parts, classifier_input = [], None
        for scale in self.model.scales:
            image, target = self._resized(images.tensor, scale)
            features = self.model.backbone(image)
            parts.append(self._segments(features, target, tuple(images.tensor.shape[-2:])))
            if scale == self.model.classifier_scale:
                classifier_input = features, target
        scores, boxes, masks, windows = (torch.cat(x, dim=1) for x in zip(*parts))
        limits = self._limits
        labels = torch.zeros_like(scores, dtype=torch.int64)
        keep = non_maximum_suppression(boxes, scores, labels, limits.nms_threshold)
        count = min(limits.max_proposals, scores.shape[1])
        scores, index = torch.where(keep, scores, -1.0).topk(count, dim=1)
        boxes, masks, windows = picked(index, boxes, masks, windows)
        found = Found(scores.clamp(min=0), labels[:, :count], boxes, masks, windows)
        return found if self.model.roi_heads is None else self._classified(found, image_size, *classifier_input)

    def _classified(self, found: Found, image_size: torch.Tensor, features: dict, target: tuple) -> Found:
        """The segments with the classes of the ROI heads, which read the features of an image of ``target`` (H, W)."""
        heads, valid = self.model.roi_heads, found.scores > 0
        target = torch.tensor(target)
        scale = (target / image_size).flip(0).repeat(2)
        boxes = found.boxes * scale
        scores = classify(heads, features, Proposals(boxes, valid), target)[1]
        scores, labels, boxes, index = best_boxes(boxes, scores, valid, target, heads.box_predictor)
        return Found(scores, labels, boxes / scale, *picked(index, found.masks, found.windows))

    def _resized(self, images: torch.Tensor, scale: int):
        """Images with a shorter side of ``scale`` pixels, padded for the backbone, and their (H, W) without padding."""
        model, (height, width) = self.model, images.shape[-2:]
        target = ResizeShortestEdge.get_output_shape(height, width, scale, model.max_size)
        unit = max(1, model.size_divisibility)
        rows, columns = (
            resize_weights(before, after, -(-after // unit) * unit) for before, after in zip((height, width), target)
        )
        return rows @ images @ columns.T, target

    def _segments(self, features: dict, target: tuple, canvas: tuple):
        """
        Scores (N, n), -1 for none, boxes (N, n, 4), masks (N, n, m, m) and windows (N, n, 4) in pixels of the canvas.

        Args:
            features: of an image of ``target`` (H, W).
        """
        generator, limits, (height, width) = self.model.proposal_generator, self._limits, canvas
        size = generator.mask_size
        score_maps, objectness = generator.outputs(features)
        inside = inside_image(tuple(objectness.shape[-2:]), target, generator.stride, size, objectness.device)
        objectness = torch.where(inside & ~objectness.isnan(), objectness.float(), -torch.inf)
        # There may be fewer windows than are wanted.
        logits, cells = F.pad(objectness.flatten(1), (0, limits.top_windows), value=-torch.inf).topk(limits.top_windows)
        top, left = window_corners(cells, objectness.shape[-1], size)
        image = torch.arange(len(cells))[:, None].expand_as(cells)
        places = torch.stack([image, top, left], dim=-1).flatten(0, 1)
        masks = traceable.assemble_instances(score_maps, places, size, generator.grid).float().unflatten(0, cells.shape)
        corner = torch.stack([left, top, left, top], dim=-1)
        tight = tight_boxes(masks > 0)
        ends = torch.tensor(target[::-1] * 2, dtype=torch.float32)
        boxes = torch.minimum(((corner + tight) * generator.stride).clamp(min=0), ends)
        scores, masks = logits.sigmoid(), masks.sigmoid()
        if limits.score == "product":
            scores = rescore(scores, masks, 0.5)
        valid = (boxes[..., 2:] > boxes[..., :2]).all(-1) & (tight[..., 2] > tight[..., 0]) & (logits > -torch.inf)
        scores = torch.where(valid & scores.isfinite(), scores, -1.0)
        windows = (corner + torch.tensor([0, 0, size, size])).float() * generator.stride
        pixels = torch.tensor([width, height] * 2) / ends
        return scores, boxes * pixels, masks, windows * pixels

    def finish(self, found: Found, canvas: tuple, crop: torch.Tensor, size: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scale = (size / crop).flip(0).repeat(2)
        windows = found.windows * scale
        if self.compact:
            return found.boxes * scale, found.scores, found.labels, found.masks, windows
        masks = pasted(found.masks, windows, sides(size)) >= 0.5
        boxes = tight_boxes(masks)
        return boxes, torch.where(boxes[..., 2] > boxes[..., 0], found.scores, 0.0), found.labels, masks
