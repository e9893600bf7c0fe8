"""
Plain inference of InstanceFCN, as in the paper: every window of every scale is assembled, cell by cell, before the best
are selected.
"""

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, ImageList, Instances
from torchvision.ops import nms

from instseg_d2.modeling.instancefcn.instancefcn import InstanceFCN

OUTSIDE = -10.0


def assemble_densely(score_maps: torch.Tensor, mask_size: int, grid: int) -> torch.Tensor:
    """Score maps (k * k, H, W) of one image -> the masks of all windows (H * W, m, m), each cell from a shifted map."""
    height, width = score_maps.shape[-2:]
    before = mask_size // 2
    after = mask_size - 1 - before
    padded = F.pad(score_maps, (before, after, before, after), value=OUTSIDE)
    masks = score_maps.new_empty((height * width, mask_size, mask_size))
    for i in range(mask_size):
        for j in range(mask_size):
            position = (i * grid // mask_size) * grid + j * grid // mask_size
            masks[:, i, j] = padded[position, i : i + height, j : j + width].flatten()
    return masks


def _tight(hits: torch.Tensor):
    """Index of the first True in each row (n, m), and one beyond the last; (0, 0) if there is none."""
    size = hits.shape[1]
    first = hits.float().argmax(1)
    last = size - hits.flip(1).float().argmax(1)
    return first, torch.where(hits.any(1), last, 0)


def _segments(score_maps, objectness, scaled: tuple, size: tuple, generator) -> dict[str, torch.Tensor]:
    """All windows of one image and scale with a mask, in pixels of the image at ``size``."""
    stride, mask_size = generator.stride, generator.mask_size
    height, width = objectness.shape
    logits = assemble_densely(score_maps, mask_size, generator.grid)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = (v.flatten().to(logits.device) for v in (y, x))
    offset = mask_size / 2 - mask_size // 2
    inside = ((y + offset) * stride < scaled[0]) & ((x + offset) * stride < scaled[1])
    top, left = y - mask_size // 2, x - mask_size // 2
    y1, y2 = _tight((logits > 0).any(2))
    x1, x2 = _tight((logits > 0).any(1))
    limit_x, limit_y = scaled[1], scaled[0]
    boxes = torch.stack([left + x1, top + y1, left + x2, top + y2], 1) * stride
    boxes = torch.stack(
        [
            boxes[:, 0].clamp(0, limit_x),
            boxes[:, 1].clamp(0, limit_y),
            boxes[:, 2].clamp(0, limit_x),
            boxes[:, 3].clamp(0, limit_y),
        ],
        1,
    )
    keep = inside & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1]) & (x2 > 0)
    factor = torch.tensor([size[1] / scaled[1], size[0] / scaled[0]] * 2, device=logits.device)
    windows = torch.stack([left, top, left + mask_size, top + mask_size], 1) * stride
    probabilities = logits.sigmoid()
    scores = objectness.flatten().sigmoid()
    if generator.limits.score == "product":
        mask = (logits > 0).float()
        scores = scores * (probabilities * mask).sum((1, 2)) / (mask.sum((1, 2)) + 1e-6)
    return {
        "boxes": (boxes * factor)[keep],
        "windows": (windows * factor)[keep],
        "scores": scores[keep],
        "objectness": objectness.flatten()[keep],
        "masks": probabilities[keep],
    }


@torch.no_grad()
def plain_infer(model: InstanceFCN, images: ImageList) -> list[Instances]:
    """The detections of ``model.infer(images)`` without ROI heads, if TOP_WINDOWS drops no window of interest."""
    generator = model.proposal_generator
    found = [[] for _ in images.image_sizes]
    for scale in model.scales:
        resized = model.at_scale(images, scale)
        score_maps, objectness = generator.outputs(model.backbone(resized.tensor))
        for i, (scaled, size) in enumerate(zip(resized.image_sizes, images.image_sizes)):
            found[i].append(_segments(score_maps[i].float(), objectness[i].float(), scaled, size, generator))
    results = []
    for parts, size in zip(found, images.image_sizes):
        whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        keep = nms(whole["boxes"], whole["scores"], generator.limits.nms_threshold)[: generator.limits.max_proposals]
        result = Instances(size)
        result.pred_boxes = Boxes(whole["boxes"][keep])
        result.scores = whole["scores"][keep]
        result.objectness_logits = whole["objectness"][keep]
        result.pred_masks = whole["masks"][keep]
        result.windows = Boxes(whole["windows"][keep])
        result.pred_classes = torch.zeros_like(keep)
        results.append(result)
    return results
