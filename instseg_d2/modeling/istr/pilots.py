"""
Pilots: queries with noised boxes of the objects, which teach the refinement heads in training.

A query can learn an object's class, box and mask only once its box is near the object, and in each image only as many
queries as it has objects are matched. Pilots start near their objects and their targets are known without matching
(denoising queries, Li et al., DN-DETR, arXiv 2203.01305).

N images, P groups, S pilots of a group, C channels, Q queries of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.structures import Instances

__all__ = ["Pilots", "make_pilots"]

SHIFT = 0.4  # largest distance of a pilot's centre from its object's, in sides of the object's box
SCALE = 1.5  # a side is at most so many times the object's, and at least 1 / SCALE of it
FREE = (0.1, 0.5)  # sides of pilots of the background, in the image's sides
MOST = 100  # pilots of an image, for little memory; the objects are then drawn at random


class Pilots(NamedTuple):
    """
    Groups of pilots, each with an object at most once, as queries should have them. The rest of a group is background.

    Attributes:
        groups: P.
        boxes: (N, P * S, 4) x1, y1, x2, y2 in input pixels, group after group.
        rows: (pairs,) int64, the pilot of each pair inside its image.
        objects: (pairs,) int64, its object in the batch, image after image.
        pairs: how many of the pairs belong to each image.
    """

    groups: int
    boxes: torch.Tensor
    rows: torch.Tensor
    objects: torch.Tensor
    pairs: list[int]

    def queries(self, queries: torch.Tensor) -> torch.Tensor:
        """Random ones of the model's first queries: (N, Q, C) -> (N, P * S, C)."""
        drawn = torch.randint(queries.shape[1], (self.boxes.shape[1],), device=queries.device)
        return queries[:, drawn]


def _noised(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes (n, 4) moved and resized at random."""
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + sides * (0.5 + SHIFT * (2 * torch.rand_like(sides) - 1))
    half = sides * SCALE ** (2 * torch.rand_like(sides) - 1) / 2
    return torch.cat([centres - half, centres + half], dim=1)


def _anywhere(count: int, size: tuple, like: torch.Tensor) -> torch.Tensor:
    """Random boxes (count, 4) in an image of (H, W)."""
    whole = like.new_tensor([size[1], size[0]])
    half = whole * (FREE[0] + (FREE[1] - FREE[0]) * torch.rand(count, 2, device=like.device)) / 2
    centres = whole * torch.rand(count, 2, device=like.device)
    return torch.cat([centres - half, centres + half], dim=1)


@torch.no_grad()
def make_pilots(gt_instances: Sequence[Instances], groups: int) -> Pilots:
    """
    Random pilots for a batch.

    Args:
        groups: P, the pilots of each object.
    """
    counts = [len(x) for x in gt_instances]
    most = min(max([*counts, 1]), max(MOST // groups, 1))  # S
    boxes, rows, objects, first = [], [], [], 0
    for instances, count in zip(gt_instances, counts):
        own, size = instances.gt_boxes.tensor.float(), instances.image_size
        for group in range(groups):
            chosen = torch.randperm(count, device=own.device)[:most]
            boxes += [_noised(own[chosen]), _anywhere(most - len(chosen), size, own)]
            rows.append(torch.arange(len(chosen), device=own.device) + group * most)
            objects.append(chosen + first)
        first += count
    pairs = [groups * min(count, most) for count in counts]
    shape = len(counts), groups * most, 4
    return Pilots(groups, torch.cat(boxes).view(shape), torch.cat(rows), torch.cat(objects), pairs)
