"""
Plain inference and losses of EmbedMask, as in the paper and its public code: embeddings and margins at every location,
loops over images and objects, a tensor (objects, height, width, dimensions), whole maps resized.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import batched_nms
from detectron2.structures import BitMasks, Boxes, ImageList, Instances, PolygonMasks

from instseg_d2.layers import LocationGrid, flatten_levels
from instseg_d2.modeling.embedmask.embedmask import LOSS_NAMES, EmbedMask
from instseg_d2.modeling.proposal_generator.fcos_head import HeadOutputs
from projects.benchmarks.plain.fcos import plain_candidates, plain_locations


def _with_position(model, embedding, stride: int):
    """Add position_scale * (x, y) / 100 to the first two channels of a map (N, E, h, w), in v2 and v3."""
    if model.position_scale is None:
        return embedding
    position = torch.stack(list(plain_locations(*embedding.shape[-2:], stride, embedding))) * model.position_scale / 100
    return torch.cat([embedding[:, :2] + position, embedding[:, 2:]], dim=1)


def _dense_proposals(model, tower, distances, level: int, canvas):
    """Embeddings and margins at every location of a level, in one map."""
    head, stride = model.proposal_head, model.proposal_generator.head.strides[level]
    embedding = _with_position(model, head.embedding(tower / head.divisor), stride)
    if head.box_margin is not None:
        scale = head.box_scale if head.box_scale > 0 else min(canvas)
        weight, bias = head.box_margin.weight[:, :, None, None], head.box_margin.bias
        margin = F.conv2d(distances.detach() * stride / scale, weight, bias).exp()
    elif head.margin is not None:
        margin = head.margin(tower / head.margin_divisor)
        if head.margin_scales is not None:
            margin = torch.cat([margin[:, :2] * head.margin_scales[level], margin[:, 2:]], dim=1)
        margin = margin.exp()
    else:
        margin = torch.full_like(embedding[:, :1], head.fixed_margin)
    return torch.cat([embedding, margin], dim=1)


def _dense_outputs(model, images: ImageList):
    """(Class logits, distances in strides, quality, embedding and margin, tower) per level, and pixel embeddings."""
    features = model.backbone(images.tensor)
    fcos, head = model.proposal_generator, model.proposal_generator.head
    levels = []
    for level, name in enumerate(fcos.in_features):
        x = features[name]
        tower = head.box_tower(x, level)
        distances = F.relu(head.box_distances(tower) * head.scales[level])
        proposals = _dense_proposals(model, tower, distances, level, images.tensor.shape[-2:])
        logits = head.class_logits(head.class_tower(x, level))
        levels.append((logits, distances, head.quality_logits(tower), proposals, tower))
    pixel_head = model.pixel_head
    pixels = pixel_head.embedding(pixel_head.tower(features[fcos.in_features[0]], 0) / pixel_head.divisor)
    pixels = _with_position(model, pixels, pixel_head.stride)
    return levels, F.interpolate(pixels, scale_factor=pixel_head.scale_factor, mode="bilinear", align_corners=False)


def _log_probabilities(model, pixels, embeddings, margins):
    """-sum margin * (pixel - proposal)^2 of a map (E, h, w) and proposals (D, E): (D, h, w)."""
    if model.proposal_head.fixed_margin is not None:
        margins = torch.full_like(margins, model.proposal_head.fixed_margin)
    difference = pixels.permute(1, 2, 0)[None] - embeddings[:, None, None]
    return -(difference**2 * margins[:, None, None]).sum(3)


@torch.no_grad()
def plain_infer(model: EmbedMask, images: ImageList) -> list[Instances]:
    """The detections of ``model.infer(images)``, with the whole maps (D, h, w) of the padded batch as pred_masks."""
    levels, pixels = _dense_outputs(model, images)
    limits, strides, dim = model.proposal_generator.limits_test, model.proposal_generator.head.strides, pixels.shape[1]
    end = 1 if model.inclusive else 0
    results = []
    for image, (height, width) in enumerate(images.image_sizes):
        found = [
            plain_candidates(*(maps[image] for maps in level[:4]), stride, limits)
            for level, stride in zip(levels, strides)
        ]
        boxes, scores, classes, proposals = (torch.cat(parts) for parts in zip(*found))
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, width - end)
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, height - end)
        spans = boxes + torch.tensor([0, 0, end, end], device=boxes.device)
        keep = batched_nms(spans, scores, classes, limits.nms_threshold)[: limits.post_nms_topk]
        maps = _log_probabilities(model, pixels[image], proposals[keep, :dim], proposals[keep, dim:])
        maps, fill = (maps, -10.0) if model.log_masks else (maps.exp(), 0.0)
        ys, xs = torch.meshgrid(*(torch.arange(n, device=maps.device) for n in maps.shape[-2:]), indexing="ij")
        for mask, box in zip(maps, boxes[keep] / model.stride):
            x1, y1, x2, y2 = (int(v) for v in box) if model.log_masks else box.tolist()
            reach = 2 if model.log_masks else 1
            inside = (xs >= x1 - reach) & (xs < x2 + reach) & (ys >= y1 - reach) & (ys < y2 + reach)
            mask[~inside] = fill
        result = Instances((height, width), scores=scores[keep], pred_classes=classes[keep], pred_masks=maps)
        result.pred_boxes = Boxes(boxes[keep])
        results.append(result)
    return results


def plain_postprocess(model: EmbedMask, result: Instances, size: tuple) -> Instances:
    """Resize, threshold and crop the whole maps of `plain_infer`."""
    (in_height, in_width), (rows, columns) = result.image_size, result.pred_masks.shape[-2:]
    height, width = size
    boxes = result.pred_boxes.tensor * torch.tensor([width / in_width, height / in_height] * 2).to(result.scores)
    boxes[:, 2:] += 1 if model.inclusive else 0
    canvas = (
        math.ceil(model.stride * rows * height / in_height),
        math.ceil(model.stride * columns * width / in_width),
    )
    maps = F.interpolate(result.pred_masks[:, None], canvas, mode="bilinear", align_corners=False)[:, 0]
    threshold = math.log(model.mask_threshold) if model.log_masks else model.mask_threshold
    scaled = Instances(size, scores=result.scores, pred_classes=result.pred_classes)
    scaled.pred_boxes = Boxes(boxes)
    scaled.pred_boxes.clip(size)
    scaled.pred_masks = maps[:, :height, :width] > threshold
    return scaled[scaled.pred_boxes.nonempty()]


def _iou(a, b, end: int):
    """IoU of two boxes, which include pixels x2 and y2 if ``end`` is 1."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + end
    height = min(a[3], b[3]) - max(a[1], b[1]) + end
    common = max(width, 0) * max(height, 0)
    areas = [(x2 - x1 + end) * (y2 - y1 + end) for x1, y1, x2, y2 in (a, b)]
    return common / (sum(areas) - common)


def _lovasz(logits, labels):
    """The Lovasz hinge of one object."""
    if len(logits) == 0:
        return logits.sum()
    errors, order = (1 - logits * (labels * 2 - 1)).sort(descending=True)
    labels = labels[order]
    intersection = labels.sum() - labels.cumsum(0)
    union = labels.sum() + (1 - labels).cumsum(0)
    jaccard = 1 - intersection / union
    steps = torch.cat([jaccard[:1], jaccard[1:] - jaccard[:-1]])
    return (F.relu(errors) * steps).sum()


def _object_proposal(model, rows, ltrb, proposals, box, grid):
    """The candidates (Q, C) of one object among its positive rows."""
    ious = []
    for row in rows.tolist():
        level, _, y, x = (int(v) for v in grid.locate(torch.tensor([row], device=rows.device)))
        stride = int(grid.strides[level])
        l, t, r, b = (ltrb[row] * stride).tolist()
        x, y = x * stride + stride // 2, y * stride + stride // 2
        ious.append(_iou((x - l, y - t, x + r, y + b), box.tolist(), int(model.inclusive)))
    best = max(ious)
    if not model.criterion.averaged:
        return proposals[rows[ious.index(best)]][None]
    threshold = model.criterion.iou_threshold
    good = [i for i, iou in enumerate(ious) if iou > threshold] or [i for i, iou in enumerate(ious) if iou == best]
    return proposals[rows[good]]


def plain_mask_losses(model: EmbedMask, pixels, proposals, outputs, positives, masks, gt_instances) -> dict:
    """
    The losses of the embeddings alone.

    Args:
        pixels: (N, E, h, w) pixel embeddings.
        proposals: (X, C) embedding and margin of every row.
        outputs, positives: of FCOS.
        masks: one (H, W) bool per object, padded to the batch.
    """
    criterion, dim, (h, w) = model.criterion, pixels.shape[1], pixels.shape[-2:]
    mask_sum, smooth_sum, index = pixels.sum() * 0, pixels.sum() * 0, 0
    for image, x in enumerate(gt_instances):
        means, regions, smooth = [], [], 0.0
        for box in x.gt_boxes.tensor:
            rows = positives.rows[positives.objects == index]
            if len(rows):
                candidates = _object_proposal(model, rows, outputs.ltrb.detach(), proposals, box, outputs.grid)
                means.append(candidates.mean(0))
                smooth = smooth + ((candidates - means[-1]) ** 2).sum()
                regions.append((box / model.stride, masks[index]))
            index += 1
        if not means:
            continue
        means = torch.stack(means)
        maps = _log_probabilities(model, pixels[image], means[:, :dim], means[:, dim:])
        total = 0.0
        for log_p, ((x1, y1, x2, y2), mask) in zip(maps, regions):
            target = F.interpolate(mask[None, None].float(), (h, w), mode="bilinear", align_corners=False)[0, 0] > 0
            if criterion.box_padding >= 0:
                ys, xs = torch.meshgrid(*(torch.arange(n, device=log_p.device) for n in (h, w)), indexing="ij")
                right, down = ((b - a) * criterion.box_padding + 1 for a, b in ((x1, x2), (y1, y2)))
                region = (xs >= x1 - right) & (xs < x2 + right) & (ys >= y1 - down) & (ys < y2 + down)
                log_p, target = log_p[region], target[region]
            p = log_p.flatten().exp()
            if criterion.min_probability:
                p = p.clamp(criterion.min_probability, 1 - 2.0**-24)
            total = total + _lovasz(p.log() - (1 - p).log(), target.flatten().float())
        mask_sum = mask_sum + total / (len(x) if criterion.averaged else len(means))
        smooth_sum = smooth_sum + smooth / len(x)
    losses = {}
    if criterion.averaged:
        losses["smooth_loss"] = criterion.smooth_weight * smooth_sum / len(gt_instances)
    losses["mask_loss"] = criterion.mask_weight * mask_sum / len(gt_instances)
    return losses


def plain_losses(model: EmbedMask, images: ImageList, gt_instances: Sequence[Instances]) -> dict:
    """
    The losses of ``model.losses``; assignment and losses of FCOS are the model's own.

    Args:
        gt_instances: result of ``model.gt_instances(batched_inputs)``.
    """
    levels, pixels = _dense_outputs(model, images)
    fcos = model.proposal_generator
    logits, distances, quality, proposals = (flatten_levels(maps) for maps in list(zip(*levels))[:4])
    grid = LocationGrid(len(gt_instances), [x[0].shape[-2:] for x in levels], fcos.head.strides, pixels.device)
    outputs = HeadOutputs(grid, logits, distances, quality[:, 0], [level[4] for level in levels])
    height, width = images.tensor.shape[-2:]
    masks = []
    for x in gt_instances:
        bitmasks = x.gt_masks
        if isinstance(bitmasks, PolygonMasks):
            bitmasks = BitMasks.from_polygon_masks(bitmasks, *x.image_size)
        rest = (0, width - x.image_size[1], 0, height - x.image_size[0])
        masks += F.pad(bitmasks.tensor.to(pixels.device), rest)

    def in_mask(objects, xy):
        inside = (xy[:, 0] < width) & (xy[:, 1] < height)
        pairs = zip(inside.tolist(), objects.tolist(), xy.long().tolist())
        return torch.tensor([ok and bool(masks[k][y, x]) for ok, k, (x, y) in pairs], dtype=torch.bool).to(xy.device)

    positives = fcos.match(outputs, gt_instances, in_mask if model.sample_in_mask else None)
    losses = {LOSS_NAMES[name]: loss for name, loss in fcos.losses(outputs, positives, gt_instances)[0].items()}
    losses.update(plain_mask_losses(model, pixels, proposals, outputs, positives, masks, gt_instances))
    return losses
