"""
Converts queries to detections, for the meta-architecture and for Detectron2's GeneralizedRCNN.

N images, Q queries per image, C channels, D detections per image, S side of a decoded mask.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Boxes, Instances
from torch import nn
from torchvision.ops import box_convert

from ...config.istr import istr_version
from .embedding import MaskEmbedding
from .refinement import RefinementHeads, Stage


class Detections(NamedTuple):
    """
    The best (query, class) pairs.

    Attributes:
        queries, classes, scores: (N, D), best first.
        stages: the results of each head.
        decode_masks: (stage, queries (N, q)) -> boxes (N, q, 4) and masks (N, q, 1, S, S) after that stage.
    """

    queries: torch.Tensor
    classes: torch.Tensor
    scores: torch.Tensor
    stages: list[Stage]
    decode_masks: Callable


def paste_threshold(cfg) -> float:
    """The minimum value of a mask's pixels: 0.5 in version 1, 0.45 in version 2."""
    return 0.5 if istr_version(cfg) == 1 else 0.45


def whole_image_boxes(num_queries: int) -> nn.Embedding:
    """Learned boxes (Q, 4), initialised to the whole image: centre, width and height relative to the image."""
    return nn.Embedding.from_pretrained(torch.tensor([[0.5, 0.5, 1.0, 1.0]]).repeat(num_queries, 1), freeze=False)


def tiled_boxes(num_queries: int) -> nn.Embedding:
    """
    Learned boxes (Q, 4) that start on grids: the whole image, 2 x 2, 4 x 4, 6 x 6, ... boxes as far as there are
    queries, each 1.5 times as large as its share of the image. The rest is one further grid, whose last row may have
    larger gaps.
    """
    boxes, side = [], 1
    while num_queries - len(boxes) >= side**2:
        boxes += _grid(side, side)
        side += 2 if side > 1 else 1
    rest = num_queries - len(boxes)
    rows = max(1, round(math.sqrt(rest)))
    for row in range(rows if rest else 0):
        count = rest // rows + (row < rest % rows)
        boxes += [(x, (row + 0.5) / rows, width, 1.5 / rows) for x, _, width, _ in _grid(count, 1)]
    return nn.Embedding.from_pretrained(torch.tensor(boxes).clamp(max=1), freeze=False)


def _grid(columns: int, rows: int) -> list[tuple]:
    """Boxes (centre, width, height) of a grid, 1.5 times as large as its cells."""
    return [
        ((column + 0.5) / columns, (row + 0.5) / rows, 1.5 / columns, 1.5 / rows)
        for row in range(rows)
        for column in range(columns)
    ]


def initial_queries(maps: Sequence[torch.Tensor], image_sizes, boxes: nn.Embedding, queries: nn.Embedding):
    """
    The input of the first head.

    Args:
        maps: (N, C, h_l, w_l) of each pyramid level.
        image_sizes: (H, W) of the unpadded images, a sequence or (N, 2) tensor.
        boxes: see `whole_image_boxes`.
        queries: (Q, C) embedding.

    Returns:
        boxes: (N, Q, 4) x1, y1, x2, y2 in pixels of the unpadded images.
        queries: (N, Q, C), the embedding plus the sum of each level's mean over the padded image.
    """
    sizes = torch.as_tensor(image_sizes).flip(1).repeat(1, 2)
    scale = sizes.to(boxes.weight, non_blocking=True)
    pixels = box_convert(boxes.weight * scale[:, None], "cxcywh", "xyxy")
    return pixels, sum(x.mean((2, 3)) for x in maps)[:, None] + queries.weight


def detect(heads: RefinementHeads, features, boxes, queries, embedding: MaskEmbedding, limit: int) -> Detections:
    """
    Refine the queries and choose the best (query, class) pairs.

    Args:
        features, boxes, queries: see `RefinementHeads.forward`.
        limit: maximum of D.
    """
    maps = heads.maps(features)
    rows = heads.pooler.rows(maps)
    stages = list(heads.refine(maps, rows, boxes, queries))
    # Only the averaged heads compute logits. Masks are decoded later, for the kept pairs.
    logits = [stage.head.classify(stage.queries).float() for stage in stages[-heads.averaged_heads :]]
    probabilities = torch.stack(logits).mean(0).sigmoid().nan_to_num(nan=-torch.inf)  # NaN ranks last
    scores, index = probabilities.flatten(1).topk(min(limit, probabilities[0].numel()))
    num_classes = probabilities.shape[-1]

    def decode_masks(stage: Stage, query: torch.Tensor):
        image = torch.arange(len(query), device=query.device)[:, None]
        boxes = stage.boxes[image, query]
        codes, feature = heads.mask_codes(stage.head, maps, rows, boxes, stage.queries[image, query])
        masks = embedding.decode(codes.flatten(0, 1), feature)
        return boxes, masks.unflatten(0, query.shape)[:, :, None]

    return Detections(index // num_classes, index % num_classes, scores, stages, decode_masks)


def to_instances(found: Detections, image_sizes: Sequence[tuple]) -> list[Instances]:
    """Convert to Instances in input pixels, with pred_masks (D, 1, S, S) inside the unclipped boxes."""
    results = []
    masks = found.decode_masks(found.stages[-1], found.queries)
    for size, *fields in zip(image_sizes, *masks, found.classes, found.scores):
        result = Instances(size)
        result.pred_boxes = Boxes(fields[0])
        result.pred_masks = fields[1]
        result.pred_classes = fields[2]
        result.scores = fields[3]
        results.append(result)
    return results
