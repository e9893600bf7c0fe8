"""
Plain inference and losses of SparseInst, as in the paper and its public code: every concatenation, resize and product
one by one, all full-size float masks at once, the cost of every pair of the batch in training.

N images, Q slots per image, M objects, K classes, h x w cells of a map.
"""

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.nn import sigmoid_focal_loss
from scipy.optimize import linear_sum_assignment
from torchvision.ops import masks_to_boxes

from instseg_d2.modeling.sparseinst.sparseinst import SparseInst


def _resize(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def plain_encoder(encoder, features: dict) -> torch.Tensor:
    """The backbone's maps -> (N, C, h, w)."""
    maps = [lateral(features[name]) for name, lateral in zip(encoder.in_features, encoder.laterals)]
    coarse, context = maps[-1], encoder.context
    pooled = [
        _resize(F.relu(conv(F.adaptive_avg_pool2d(coarse, side))), coarse.shape[-2:])
        for side, conv in zip(context.sizes, context.branches)
    ]
    top_down = F.relu(context.bottleneck(torch.cat([*pooled, coarse], dim=1)))
    results = [encoder.outputs[-1](top_down)]
    for level in range(len(maps) - 2, -1, -1):
        top_down = maps[level] + F.interpolate(top_down, scale_factor=2.0, mode="nearest")
        results.insert(0, encoder.outputs[level](top_down))
    return encoder.fusion(torch.cat([results[0], *(_resize(x, results[0].shape[-2:]) for x in results[1:])], dim=1))


def plain_decoder(decoder, features: torch.Tensor):
    """(N, C, h, w) -> class logits (N, Q, K), objectness logits (N, Q), mask logits (N, Q, s h, s w)."""
    batch, _, height, width = features.shape
    ys = torch.linspace(-1, 1, height).to(features)
    xs = torch.linspace(-1, 1, width).to(features)
    ys, xs = torch.meshgrid(ys, xs, indexing="ij")
    coordinates = torch.stack([xs, ys]).expand(batch, 2, height, width)
    x = torch.cat([coordinates, features], dim=1)
    branch = decoder.instance_branch
    picked = branch.convs(x)
    maps = branch.iam_conv(picked)
    if branch.softmax_bias is not None:
        maps = (maps.flatten(2) + branch.softmax_bias).softmax(-1)
    else:
        maps = maps.sigmoid().flatten(2)
        maps = maps / maps.sum(-1, keepdim=True).clamp(min=1e-6)
    vectors = maps @ picked.flatten(2).transpose(1, 2)
    if branch.fc is not None:
        vectors = vectors.reshape(batch, branch.groups, branch.num_masks, -1).transpose(1, 2).flatten(2)
        vectors = F.relu(branch.fc(vectors))
    pixels = decoder.mask_branch.projection(decoder.mask_branch.convs(x))
    masks = (branch.mask_kernel(vectors) @ pixels.flatten(2)).view(batch, -1, height, width)
    masks = _resize(masks, (int(height * decoder.scale_factor), int(width * decoder.scale_factor)))
    return branch.class_logits(vectors), branch.objectness(vectors)[..., 0], masks


@torch.no_grad()
def plain_infer(model: SparseInst, images: ImageList) -> list[Instances]:
    """The detections of ``model.infer(images)``."""
    predictions = plain_decoder(model.decoder, plain_encoder(model.encoder, model.backbone(images.tensor)))
    results = []
    for size, classes, objectness, masks in zip(images.image_sizes, *predictions):
        scores, labels = (classes.sigmoid() * objectness.sigmoid()[:, None]).sqrt().max(-1)
        keep = scores > model.score_threshold
        masks = masks.sigmoid()[keep]
        inside = (masks > model.mask_threshold).float()
        result = Instances(size)
        result.scores = scores[keep] * (masks * inside).sum((1, 2)) / (inside.sum((1, 2)) + 1e-6)
        result.pred_classes = labels[keep]
        result.pred_masks = masks
        results.append(result)
    return results


def plain_postprocess(model: SparseInst, result: Instances, size: tuple) -> Instances:
    """The result of ``model.postprocess(result, size)``, from two full-size resizes of all masks at once."""
    height, width = result.image_size
    masks = result.pred_masks[None]
    masks = _resize(masks, tuple(round(side * model.mask_stride) for side in masks.shape[-2:]))
    masks = _resize(masks[..., :height, :width], size)[0] > model.mask_threshold
    boxes = torch.zeros((len(masks), 4), device=masks.device)
    filled = masks.flatten(1).any(1)
    boxes[filled] = masks_to_boxes(masks[filled]) + torch.tensor([0.0, 0.0, 1.0, 1.0], device=masks.device)
    scaled = Instances(size, pred_boxes=Boxes(boxes), pred_masks=masks)
    scaled.scores, scaled.pred_classes = result.scores, result.pred_classes
    return scaled


def plain_losses(model: SparseInst, images: ImageList, gt_instances) -> dict:
    """The losses of ``model.losses`` for images with objects and bitmasks; all pairs of the batch are scored."""
    criterion = model.criterion
    predictions = plain_decoder(model.decoder, plain_encoder(model.encoder, model.backbone(images.tensor)))
    classes, objectness, masks = predictions
    batch, slots = classes.shape[:2]
    size, canvas = masks.shape[-2:], images.tensor.shape[-2:]
    targets = []
    for x in gt_instances:
        padded = torch.zeros(len(x), *canvas, device=masks.device)
        padded[:, : x.image_size[0], : x.image_size[1]] = x.gt_masks.tensor
        targets.append(_resize(padded[None], size)[0])
    counts = [len(x) for x in gt_instances]
    target = torch.cat(targets).flatten(1)
    labels = torch.cat([x.gt_classes for x in gt_instances])
    with torch.no_grad():
        probabilities = masks.flatten(0, 1).flatten(1).sigmoid()
        overlap = 2 * probabilities @ target.T
        dice = overlap / ((probabilities**2).sum(1)[:, None] + (target**2).sum(1) + 1e-4)
        score = classes.flatten(0, 1).sigmoid()[:, labels] ** criterion.beta * dice**criterion.alpha
        score = score.view(batch, slots, -1)
    score = score.cpu().numpy()
    first, rows, columns = 0, [], []
    for image, count in enumerate(counts):
        row, column = linear_sum_assignment(score[image, :, first : first + count], maximize=True)
        rows.append(torch.as_tensor(row) + image * slots)
        columns.append(torch.as_tensor(column) + first)
        first += count
    rows, columns = torch.cat(rows).to(masks.device), torch.cat(columns).to(masks.device)
    count = max(sum(counts), 1)
    onehot = torch.zeros_like(classes).flatten(0, 1)
    onehot[rows, labels[columns]] = 1
    logits, truth = masks.flatten(0, 1).flatten(1)[rows], target[columns]
    p = logits.sigmoid()
    dice = 1 - 2 * (p * truth).sum(1) / ((p**2).sum(1) + (truth**2).sum(1) + 1e-4)
    with torch.no_grad():
        inside, labelled = (p >= criterion.binarise).float(), (truth > 0.5).float()
        both = (inside * labelled).sum(1)
        iou = both / (inside.sum(1) + labelled.sum(1) - both + 1e-6)
    losses = {
        "loss_ce": sigmoid_focal_loss(classes.flatten(0, 1), onehot, 0.25, 2.0, reduction="sum") / count,
        "loss_mask": F.binary_cross_entropy_with_logits(logits, truth),
        "loss_dice": dice.sum() / count,
        "loss_objectness": F.binary_cross_entropy_with_logits(objectness.flatten()[rows], iou),
    }
    return {name: value * criterion.weights[name] for name, value in losses.items()}
