"""
Plain inference and losses of ISTR, as in the paper and its public code: Detectron2's pooler, every branch of every
head, loops over heads and images, masks rasterised for each of them.

N images, Q queries per image, M_i objects in image i, L length of a mask code, S side of a mask.
"""

import math

import torch
import torch.nn.functional as F
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList, Instances, PolygonMasks
from scipy.optimize import linear_sum_assignment
from torchvision.ops import generalized_box_iou

from instseg_d2.modeling.istr.head import DynamicAttention
from instseg_d2.modeling.istr.istr import ISTR


def _self_attention(layer, x):
    """Multi-head self-attention of queries (Q, C), head by head."""
    q, k, v = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, dim=1)
    heads = []
    for i in range(layer.num_heads):
        part = slice(i * layer.head_dim, (i + 1) * layer.head_dim)
        weights = (q[:, part] @ k[:, part].T / math.sqrt(layer.head_dim)).softmax(-1)
        heads.append(weights @ v[:, part])
    return layer.out_proj(torch.cat(heads, dim=1))


def _roi_attention(layer, queries, rois):
    """queries (N * Q, C), rois (N * Q, C, R, R) -> (N * Q, C)."""
    rois = rois.flatten(2).permute(2, 0, 1)  # cells first, as in the public code
    if not isinstance(layer, DynamicAttention):
        return layer.attention(queries[:, None], rois.permute(1, 0, 2), rois.permute(1, 0, 2))[0][:, 0]
    features = rois.permute(1, 0, 2)
    channels, dim = layer.shape
    parameters = layer.dynamic_layer(queries)
    first = parameters[:, : channels * dim].reshape(-1, channels, dim)
    second = parameters[:, channels * dim :].reshape(-1, dim, channels)
    features = F.elu(layer.norm1(torch.bmm(features, first)))
    features = F.elu(layer.norm2(torch.bmm(features, second)))
    return F.elu(layer.norm3(layer.out_layer(features.flatten(1))))


def _apply_deltas(boxes, deltas):
    """Faster R-CNN's box regression with weights (2, 2, 1, 1) for boxes (N * Q, 4)."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + size / 2 + deltas[:, :2] / 2 * size
    size = size * deltas[:, 2:].clamp(max=math.log(100000 / 16)).exp()
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


def _poolers(model: ISTR):
    heads = model.roi_heads
    for pooler in (heads.pooler, heads.mask_pooler):
        if pooler is not None:
            scales = [1 / stride for stride in pooler.strides]
            yield ROIPooler(pooler.resolution, scales, pooler.sampling_ratio, "ROIAlignV2")


def plain_heads(model: ISTR, images: ImageList, all_masks: bool):
    """For each head: class logits (N, Q, K), boxes (N, Q, 4), codes (N, Q, L) or None, decoder features or None."""
    features = model.backbone(images.tensor)
    maps = [features[name] for name in model.roi_heads.in_features]
    pooler, *mask_pooler = _poolers(model)
    boxes, queries = [], []
    for image, (height, width) in enumerate(images.image_sizes):
        x, y, w, h = model.initial_boxes.weight.unbind(1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=1)
        boxes.append(corners * corners.new_tensor([width, height, width, height]))
        queries.append(sum(level[image].mean((1, 2)) for level in maps) + model.query_embedding.weight)
    boxes, queries = torch.stack(boxes), torch.stack(queries)
    outputs = []
    for i, head in enumerate(model.roi_heads.heads):
        rois = pooler(maps, [Boxes(x.detach()) for x in boxes])
        attended = torch.stack([_self_attention(head.self_attention, x) for x in queries])
        queries = head.norm1(queries + attended).flatten(0, 1)
        queries = head.norm2(queries + _roi_attention(head.roi_attention, queries, rois))
        queries = head.norm3(queries + head.linear2(F.elu(head.linear1(queries))))
        logits = head.class_logits(head.class_branch(queries))
        deltas = head.box_deltas(head.box_branch(queries))
        shape = boxes.shape
        boxes = _apply_deltas(boxes.flatten(0, 1), deltas).view(shape)
        codes, feature = None, None
        if all_masks or not mask_pooler or i == len(model.roi_heads.heads) - 1:
            crops = mask_pooler[0](maps, [Boxes(x.detach()) for x in boxes]) if mask_pooler else None
            codes, feature = head.mask_branch(queries, crops)
            codes = codes.view(*shape[:2], -1)
        queries = queries.view(*shape[:2], -1)
        outputs.append((logits.view(*shape[:2], -1), boxes, codes, feature))
        boxes = boxes.detach()
    return outputs


@torch.no_grad()
def plain_infer(model: ISTR, images: ImageList) -> list[Instances]:
    """The detections of ``model.infer(images)``."""
    outputs = plain_heads(model, images, all_masks=False)
    logits = torch.stack([x[0] for x in outputs[-model.roi_heads.averaged_heads :]]).mean(0)
    _, boxes, codes, features = outputs[-1]
    results = []
    for image, size in enumerate(images.image_sizes):
        scores, index = logits[image].sigmoid().flatten().sort(descending=True)
        scores, index = scores[: model.max_detections], index[: model.max_detections]
        query = torch.div(index, logits.shape[2], rounding_mode="floor")
        result = Instances(size)
        result.pred_boxes = Boxes(boxes[image][query])
        result.scores = scores
        result.pred_classes = index % logits.shape[2]
        feature = None if features is None else features[image * boxes.shape[1] + query]
        result.pred_masks = model.mask_embedding.decode(codes[image][query], feature)[:, None]
        results.append(result)
    return results


def _crops(instances: Instances, boxes, size: int) -> torch.Tensor:
    """Crop each object's mask to a box: (M_i, S, S)."""
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        masks = masks.to(boxes.device)
    return masks.crop_and_resize(boxes, size).to(boxes.device).float()


@torch.no_grad()
def _match(model: ISTR, logits, boxes, codes, instances: Instances):
    """Match the queries and objects of one head and image with the cosine cost."""
    weights = model.criterion.weights
    p, classes = logits.sigmoid(), instances.gt_classes
    alpha, gamma = model.criterion.alpha, model.criterion.gamma
    cost = alpha * (1 - p) ** gamma * -(p + 1e-8).log() - (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    height, width = instances.image_size
    scale = boxes.new_tensor([width, height, width, height])
    gt_boxes = instances.gt_boxes.tensor
    target_codes = model.mask_embedding.encode(_crops(instances, gt_boxes, model.mask_embedding.size))
    cosine = F.normalize(codes, eps=1e-12) @ F.normalize(target_codes, eps=1e-12).T
    cost = (
        weights["class"] * cost[:, classes]
        + weights["l1"] * ((boxes / scale)[:, None] - gt_boxes / scale).abs().sum(-1)
        - weights["giou"] * generalized_box_iou(boxes, gt_boxes)
        - weights["code"] * (cosine + 1) / 2
    )
    return linear_sum_assignment(cost.cpu().numpy())


def plain_losses(model: ISTR, images: ImageList, gt_instances: list[Instances]) -> dict:
    """The losses of ``model.losses`` on one worker, with both mask losses and the cosine cost."""
    criterion, embedding = model.criterion, model.mask_embedding
    count = max(sum(len(x) for x in gt_instances), 1)
    outputs = plain_heads(model, images, all_masks=True)
    losses = {}
    for i, (logits, boxes, codes, features) in enumerate(outputs):
        p = logits.sigmoid()
        focal = criterion.alpha, criterion.gamma
        labels = torch.zeros_like(logits)
        sums = {"bbox": 0.0, "giou": 0.0}
        pair_codes, pair_features, crops = [], [], []
        for image, instances in enumerate(gt_instances):
            rows, columns = _match(model, logits[image], boxes[image], codes[image], instances)
            rows, columns = (torch.as_tensor(x, device=boxes.device) for x in (rows, columns))
            labels[image, rows, instances.gt_classes[columns]] = 1
            height, width = instances.image_size
            scale = boxes.new_tensor([width, height, width, height])
            found, matched_boxes = boxes[image][rows], instances.gt_boxes.tensor[columns]
            sums["bbox"] += (found / scale - matched_boxes / scale).abs().sum()
            sums["giou"] += (1 - generalized_box_iou(found, matched_boxes).diag()).sum()
            matched = Instances(instances.image_size, gt_masks=instances.gt_masks[columns])
            if criterion.version == 2:
                matched_boxes = torch.minimum(found.detach().clamp(min=0), scale)
            crops.append(_crops(matched, matched_boxes, embedding.size))
            pair_codes.append(codes[image][rows])
            if features is not None:
                pair_features.append(features[image * boxes.shape[1] + rows])
        crops, pair_codes = torch.cat(crops), torch.cat(pair_codes)
        alpha, gamma = focal
        entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        miss = p * (1 - labels) + (1 - p) * labels
        focal = (alpha * labels + (1 - alpha) * (1 - labels)) * miss**gamma * entropy
        error = pair_codes - embedding.encode(crops)
        error = error**2 if criterion.version == 1 else F.smooth_l1_loss(error, 0 * error, reduction="none")
        masks = embedding.decode(pair_codes, torch.cat(pair_features) if pair_features else None)
        inter, norms = (masks * crops).sum((1, 2)), (masks**2).sum((1, 2)) + (crops**2).sum((1, 2))
        suffix = "" if criterion.version == 1 and i == len(outputs) - 1 else f"_{i}"
        weights = criterion.weights
        losses[f"loss_ce{suffix}"] = weights["class"] * focal.sum() / count
        losses[f"loss_bbox{suffix}"] = weights["l1"] * sums["bbox"] / count
        losses[f"loss_giou{suffix}"] = weights["giou"] * sums["giou"] / count
        losses[f"loss_feat{suffix}"] = weights["code"] * error.sum() / codes.shape[2] / count
        losses[f"loss_dice{suffix}"] = weights["dice"] * (1 - 2 * inter / (norms + 1e-5)).sum() / count
    return losses
