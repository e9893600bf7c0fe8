"""InstanceFCN as a function of tensors. N images, n windows an image and scale, D segments an image, m mask size."""

import torch
import torch.nn.functional as F
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.structures import ImageList
from torch import nn

from ...ops import traceable
from ..exportable import CropExportable, Found, non_maximum_suppression, pasted, sides, tight_boxes
from ..postprocessing import rescore
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


class ExportableInstanceFCN(CropExportable):
    """
    An `InstanceFCN` without ROI heads as one graph, for images that fill the canvas: its size gives those of all
    scales.
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
            raise ValueError("InstanceFCN cannot be exported with ROI heads: set MODEL.INSTANCE_FCN.CLASSIFY to False.")

    @property
    def output_names(self) -> tuple[str, ...]:
        return ("boxes", "scores", "labels", "masks", *(("windows",) if self.compact else ()))

    @property
    def nms_threshold(self) -> float:
        return self.model.proposal_generator.limits.nms_threshold

    @property
    def detections(self) -> int:
        return self.model.proposal_generator.limits.max_proposals

    def mask_information(self) -> dict:
        return {"form": "crops", "threshold": 0.5, "tight_boxes": True}

    def found(self, images: ImageList, image_size: torch.Tensor) -> Found:
        parts = [self._at_scale(images.tensor, scale) for scale in self.model.scales]
        scores, boxes, masks, windows = (torch.cat(x, dim=1) for x in zip(*parts))
        limits = self.model.proposal_generator.limits
        labels = torch.zeros_like(scores, dtype=torch.int64)
        keep = non_maximum_suppression(boxes, scores, labels, limits.nms_threshold)
        count = min(limits.max_proposals, scores.shape[1])
        scores, index = torch.where(keep, scores, -1.0).topk(count, dim=1)
        boxes, windows = (x.gather(1, index[..., None].expand(-1, -1, 4)) for x in (boxes, windows))
        masks = masks.gather(1, index[..., None, None].expand(-1, -1, *masks.shape[2:]))
        return Found(scores.clamp(min=0), labels[:, :count], boxes, masks, windows)

    def _at_scale(self, images: torch.Tensor, scale: int):
        """Scores (N, n), -1 for none, boxes (N, n, 4), masks (N, n, m, m) and windows (N, n, 4) in input pixels."""
        model, generator = self.model, self.model.proposal_generator
        size, limits = generator.mask_size, generator.limits
        height, width = images.shape[-2:]
        target = ResizeShortestEdge.get_output_shape(height, width, scale, model.max_size)
        unit = max(1, model.size_divisibility)
        rows, columns = (
            resize_weights(before, after, -(-after // unit) * unit) for before, after in zip((height, width), target)
        )
        score_maps, objectness = generator.outputs(model.backbone(rows @ images @ columns.T))
        inside = inside_image(tuple(objectness.shape[-2:]), target, generator.stride, size, images.device)
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
