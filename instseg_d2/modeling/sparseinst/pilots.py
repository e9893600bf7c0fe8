"""
Pilots: activation maps made from the ground truth, which teach the layers behind the maps in training.

A slot can learn its object's class and mask only once its map finds the object, and its map learns to find it only
from what the class and the mask say. Pilots break the circle: their maps are spots inside the objects, and on the
background, so their targets are known without matching (after the noised queries of MP-Former, arXiv 2303.07336).

N images, M objects of an image, P pilots of an image, h x w cells of the features.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.structures import Instances

from .targets import shares_of_cells

__all__ = ["Pilots", "pilot_maps"]

PLACE = 0.2  # largest distance of a spot from the middle of its object's box, in sides of the box
SPREAD = (0.1, 0.3)  # range of a spot's standard deviation, in sides of the box
BACKGROUND_SPREAD = (0.03, 0.13)  # in the longer side of the image
NEGATIVES = 2  # spots on the background for each object
MOST = 200  # spots in objects of an image, for little memory; the objects are then drawn at random


class Pilots(NamedTuple):
    """
    Attributes:
        maps: (N, P, h * w) float32, each with the sum 1; 0 beyond an image's own, and where objects cover the spot.
        objects: (N, P) int64, the object in its image; -1: background; -2: no pilot.
    """

    maps: torch.Tensor
    objects: torch.Tensor


def _uniform(low: float, high: float, count: int, like: torch.Tensor) -> torch.Tensor:
    return low + (high - low) * torch.rand(count, 1, device=like.device)


def _spots(centres: torch.Tensor, deviations: torch.Tensor, xs: torch.Tensor, ys: torch.Tensor) -> torch.Tensor:
    """Gaussians: centres and deviations (n, 2) x, y in pixels -> (n, h, w)."""
    across = torch.exp(-((xs - centres[:, :1]) ** 2) / (2 * deviations[:, :1] ** 2))
    down = torch.exp(-((ys - centres[:, 1:]) ** 2) / (2 * deviations[:, 1:] ** 2))
    return down[:, :, None] * across[:, None]


def _of_image(instances: Instances, canvas: tuple, size: tuple, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps (P, h * w) and objects (P,) of one image."""
    boxes = instances.gt_boxes.tensor.float()
    cell = boxes.new_tensor([canvas[1] / size[1], canvas[0] / size[0]])
    xs = (torch.arange(size[1], device=boxes.device) + 0.5) * cell[0]
    ys = (torch.arange(size[0], device=boxes.device) + 0.5) * cell[1]
    objects = torch.arange(len(boxes), device=boxes.device).repeat(count)
    if len(objects) > MOST:
        objects = objects[torch.randperm(len(objects), device=boxes.device)[:MOST]]
    repeated = boxes[objects]
    sides = repeated[:, 2:] - repeated[:, :2]
    centres = repeated[:, :2] + sides * (0.5 + PLACE * (2 * torch.rand_like(sides) - 1))
    deviations = torch.maximum(sides * _uniform(*SPREAD, len(sides), boxes), cell / 2)
    inside = _spots(centres, deviations, xs, ys)

    negatives = min(NEGATIVES * max(len(boxes), 1), MOST)
    places = torch.rand(negatives, 2, device=boxes.device) * boxes.new_tensor([canvas[1], canvas[0]])
    outside = _spots(places, (_uniform(*BACKGROUND_SPREAD, negatives, boxes) * max(canvas)).expand(-1, 2), xs, ys)
    if len(boxes):
        outside = outside * (shares_of_cells(instances, canvas, size).amax(0) == 0)
    maps = torch.cat([inside, outside]).flatten(1)
    return maps / maps.sum(1, keepdim=True).clamp(min=1e-6), F.pad(objects, (0, negatives), value=-1)


@torch.no_grad()
def pilot_maps(gt_instances: Sequence[Instances], canvas: tuple, size: tuple, count: int) -> Pilots:
    """
    Random pilots for a batch.

    Args:
        canvas: (H, W) of the padded batch.
        size: (h, w).
        count: spots for each object.
    """
    parts = [_of_image(x, canvas, size, count) for x in gt_instances]
    most = max(len(objects) for _, objects in parts)
    maps = torch.stack([F.pad(maps, (0, 0, 0, most - len(maps))) for maps, _ in parts])
    return Pilots(maps, torch.stack([F.pad(x, (0, most - len(x)), value=-2) for _, x in parts]))
