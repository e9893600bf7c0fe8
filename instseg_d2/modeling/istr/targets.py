"""
Ground truth of ISTR, and the matching of queries and objects (eq. 3-8), in float32.

N images, Q queries per image, T heads, M objects of the batch (M_i in image i), P pairs per head, K classes, L length
of a mask code, S side of an encoded mask.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torchvision.ops import generalized_box_iou

from ...layers import check_choice, join_boxes
from ..ground_truth import box_masks, crop_masks, image_masks
from ..losses.dice import pairwise_dice
from ..matching import match_by_score
from .embedding import DICE_EPSILON, MaskEmbedding
from .refinement import Predictions

MASK_COSTS = ("cosine", "l1", "dice")


class Targets:
    """
    The objects of a batch, image after image.

    Attributes:
        counts: number of objects of each image.
        image: (M,) int64, the image of each object.
        classes: (M,) int64.
        boxes: (M, 4) x1, y1, x2, y2, input pixels.
        scale: (N, 4) width, height, width, height of the unpadded images.
        crops: (M, S, S) float32 of 0 and 1, each mask cropped to its box.
    """

    def __init__(self, gt_instances: Sequence[Instances], size: int, refined: bool):
        """
        Args:
            size: S.
            refined: keep full masks, so that `crop` can crop them to other boxes.
        """
        self.size = size
        self.counts = [len(x) for x in gt_instances]
        boxes, self.image = join_boxes([x.gt_boxes for x in gt_instances])
        self.boxes = boxes.float()
        self.classes = torch.cat([x.gt_classes for x in gt_instances])
        device = self.boxes.device
        sizes = [x.image_size for x in gt_instances]
        self.scale = torch.tensor([[w, h, w, h] for h, w in sizes]).float().to(device, non_blocking=True)
        # Rasterise each polygon once: at full size if it is cropped again later, else inside its box.
        self.masks = [image_masks(x) for x in gt_instances] if refined else None
        if refined:
            own = (torch.arange(count, device=device) for count in self.counts)
            boxes = (x.gt_boxes.tensor for x in gt_instances)
            crops = torch.cat([crop_masks(*parts, size) for parts in zip(self.masks, own, boxes)])
        else:
            crops = box_masks(gt_instances, size, "gt_boxes")
        self.crops = crops.float()

    def crop(self, objects: torch.Tensor, boxes: torch.Tensor, pairs: Sequence[int]) -> torch.Tensor:
        """
        Crop masks to other boxes, which are clamped to the unpadded image.

        Args:
            objects: (T, P) indices into the objects of the batch, image after image.
            boxes: (T, P, 4).
            pairs: how many of the P pairs belong to each image.

        Returns:
            (T, P, S, S) float32 of 0 and 1.
        """
        crops, first = [], 0
        parts = zip(self.masks, self.scale, self.counts, objects.split(pairs, 1), boxes.detach().split(pairs, 1))
        for masks, limit, count, own, boxes_of_image in parts:
            clamped = torch.minimum(boxes_of_image.clamp(min=0), limit).flatten(0, 1)
            inside = crop_masks(masks, (own - first).flatten(), clamped, self.size)
            crops.append(inside.view(*own.shape, self.size, self.size))
            first += count
        return torch.cat(crops, dim=1).float()


def class_cost(logits: torch.Tensor, classes: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """Focal loss of the objects' classes minus that of background: (..., Q, K), (M,) -> (..., Q, M)."""
    p = logits.sigmoid()
    positive = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
    negative = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    return (positive - negative)[..., classes]


def code_cost(codes: torch.Tensor, target: torch.Tensor, kind: str) -> torch.Tensor:
    """
    Matching cost of mask codes: -(cos + 1) / 2, or the mean absolute difference (l1).

    Args:
        codes: (T, Q, L).
        target: (T or 1, M, L).
        kind: "cosine" or "l1".

    Returns:
        (T, Q, M).
    """
    if kind == "l1":
        return torch.cdist(codes, target.expand(len(codes), -1, -1), p=1) / codes.shape[-1]
    codes, target = F.normalize(codes, dim=-1, eps=1e-12), F.normalize(target, dim=-1, eps=1e-12)
    return -(codes @ target.transpose(1, 2) + 1) / 2


class Matcher:
    """
    One-to-one matching for each head and image by the sum of class, box and mask costs.

    Args:
        weights: weights of the costs "class", "l1", "giou" and "code".
        alpha, gamma: of the focal cost.
        mask_cost: "cosine", "l1" or "dice".
        noise: whether encodings are random, so that every head needs its own.
    """

    def __init__(self, *, weights: dict[str, float], alpha=0.25, gamma=2.0, mask_cost="cosine", noise=False):
        check_choice("mask_cost", mask_cost, MASK_COSTS)
        self.weights = weights
        self.alpha = alpha
        self.gamma = gamma
        self.mask_cost = mask_cost
        self.noise = noise

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Targets, embedding: MaskEmbedding):
        """
        Returns:
            rows: (T, P) int64, the query of each pair inside its image.
            objects: (T, P) int64, indices into the objects of the batch.
            pairs: how many of the P pairs belong to each image, min(Q, M_i).
        """
        num_heads, num_images, num_queries = predictions.boxes.shape[:3]
        scores, first = [], 0
        for image, count in enumerate(targets.counts):
            scores.append(-self._cost(predictions, targets, image, slice(first, first + count), embedding))
            first += count
        # One copy to the host for all heads and images, one back for all pairs.
        on_host = torch.cat([x.flatten() for x in scores]).cpu()
        split = on_host.split([x.numel() for x in scores])
        by_image = [x.view(num_heads, num_queries, count) for x, count in zip(split, targets.counts)]
        matches = match_by_score([by_image[image][head] for head in range(num_heads) for image in range(num_images)])
        starts = torch.tensor([0, *targets.counts]).cumsum(0)
        rows = torch.cat([rows for rows, _ in matches])
        objects = torch.cat([columns + starts[i % num_images] for i, (_, columns) in enumerate(matches)])
        pairs = [min(num_queries, count) for count in targets.counts]
        pairs_of_heads = torch.stack([rows, objects]).view(2, num_heads, sum(pairs))
        rows, objects = pairs_of_heads.to(predictions.boxes.device, non_blocking=True)
        return rows, objects, pairs

    def _cost(self, predictions: Predictions, targets: Targets, image: int, own: slice, embedding) -> torch.Tensor:
        """Weighted costs of one image, whose objects are the slice ``own`` of the batch: (T, Q, M_i)."""
        boxes, gt_boxes, scale = predictions.boxes[:, image], targets.boxes[own], targets.scale[image]
        crops = targets.crops[own]
        cost = self.weights["class"] * class_cost(
            predictions.class_logits[:, image], targets.classes[own], self.alpha, self.gamma
        )
        flat = boxes.flatten(0, 1)
        pairs = self.weights["l1"] * torch.cdist(flat / scale, gt_boxes / scale, p=1)
        pairs -= self.weights["giou"] * generalized_box_iou(flat, gt_boxes)
        cost += pairs.view_as(cost)
        own_codes = predictions.codes[:, image]
        if self.mask_cost == "dice":
            masks = embedding.decode(own_codes.flatten(0, 1)).flatten(1)
            return cost - self.weights["code"] * pairwise_dice(masks, crops.flatten(1), DICE_EPSILON).view_as(cost)
        copies = len(boxes) if self.noise else 1
        codes = embedding.encode(crops.repeat(copies, 1, 1)).view(copies, len(crops), embedding.dim)
        return cost + self.weights["code"] * code_cost(own_codes, codes, self.mask_cost)
