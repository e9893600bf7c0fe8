"""
Training targets of InstanceFCN: labels of windows, sampling, and target masks.

N images, M objects of an image, P and Q slots for positive and negative windows, m mask size, h x w cells of the
feature map, H x W pixels of the network's input. Boxes and centres are in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.structures import Instances

from ...layers import check_choice
from ..ground_truth import canvas_masks
from .windows import inside_image, window_centers, window_corners, window_offset

CELL_TARGETS = ("center", "share")


@dataclass(frozen=True)
class WindowRules:
    """
    Which windows are positive or negative (DeepMask's rule, scaled to a window of 168 pixels).

    Attributes:
        canonical_size: longer side of the objects that a window should detect, pixels.
        positive_octaves, positive_shift: a window is positive for an object whose longer side differs from
            canonical_size by a factor of at most 2^octaves and whose centre is at most ``shift`` pixels away per axis.
        negative_octaves, negative_shift: a window is negative if no object is within 2^octaves of canonical_size and
            less than ``shift`` pixels away in both axes.
        windows_per_image: number of windows sampled per image.
        positive_fraction: maximum share of positive windows; negatives fill the rest.
        cell_target: "center", whether the object covers the cell's centre, or "share", how much of the cell it covers.
    """

    canonical_size: float = 96.0
    positive_octaves: float = 0.25
    positive_shift: float = 12.0
    negative_octaves: float = 1.0
    negative_shift: float = 24.0
    windows_per_image: int = 256
    positive_fraction: float = 0.5
    cell_target: str = "center"

    def __post_init__(self):
        check_choice("cell_target", self.cell_target, CELL_TARGETS)


@dataclass
class SampledWindows:
    """
    The sampled windows, in a fixed number of slots, some of which may be unused.

    Attributes:
        positives, negatives: (N, P) and (N, Q) int64, the windows' cells y * w + x.
        positives_used, negatives_used: (N, P) and (N, Q) bool.
        objects: (N, P) int64, each positive window's object among those of its image; M for an unused slot.
    """

    positives: torch.Tensor
    positives_used: torch.Tensor
    negatives: torch.Tensor
    negatives_used: torch.Tensor
    objects: torch.Tensor


def _closest_object(centers: torch.Tensor, canonical: torch.Tensor, size: tuple, stride, mask_size, shift: float):
    """
    For each window, the canonical object with the closest centre, at most ``shift`` pixels away per axis; M for none.

    Only the few windows near each object are compared.

    Args:
        centers: (M, 2) x, y.
        canonical: (M,) bool, whether the object has the size for a positive window.

    Returns:
        (h * w,) int64.
    """
    height, width = size
    count = len(centers)
    reach = torch.arange(int(2 * shift / stride) + 2, device=centers.device)
    first = ((centers - shift) / stride - window_offset(mask_size)).floor().long()
    xs, ys = (first[:, axis, None] + reach for axis in (0, 1))
    dx, dy = (((v + window_offset(mask_size)) * stride - centers[:, i, None]) for i, v in enumerate((xs, ys)))
    x_fits = (dx.abs() <= shift) & (xs >= 0) & (xs < width)
    y_fits = (dy.abs() <= shift) & (ys >= 0) & (ys < height)
    fits = (y_fits[:, :, None] & x_fits[:, None, :] & canonical[:, None, None]).flatten()
    distances = (dy[:, :, None] ** 2 + dx[:, None, :] ** 2).flatten()
    cells = (ys[:, :, None] * width + xs[:, None, :]).flatten()
    cells = torch.where(fits, cells, height * width)  # an extra cell for those that do not fit
    nearest = distances.new_full((height * width + 1,), torch.inf)
    nearest = nearest.scatter_reduce(0, cells, distances, "amin")
    objects = torch.arange(count, device=centers.device).repeat_interleave(len(reach) ** 2)
    objects = torch.where(distances == nearest[cells], objects, count)
    closest = cells.new_full((height * width + 1,), count).scatter_reduce(0, cells, objects, "amin")
    return closest[:-1]


def label_windows(boxes: torch.Tensor, size: tuple, image_size: tuple, stride: int, mask_size: int, rules: WindowRules):
    """
    Label all windows of one image.

    Args:
        boxes: (M, 4).
        size: (h, w) of the feature map.
        image_size: (H, W) of the image without padding.

    Returns:
        labels: (h * w,) int64; 1 positive, 0 negative, -1 ignored.
        objects: (h * w,) int64, the object of each positive window.
    """
    device = boxes.device
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = (boxes[:, 2:] - boxes[:, :2]).amax(1).clamp(min=1e-3)
    octaves = (sides / rules.canonical_size).log2().abs()
    objects = _closest_object(centers, octaves <= rules.positive_octaves, size, stride, mask_size, rules.positive_shift)
    ys, xs = (window_centers(n, stride, mask_size, device) for n in size)
    near_x = (xs - centers[:, 0, None]).abs() < rules.negative_shift
    near_y = (ys - centers[:, 1, None]).abs() < rules.negative_shift
    near_y &= (octaves <= rules.negative_octaves)[:, None]
    # The number of near objects, as a product of two small matrices instead of an (M, h, w) tensor.
    near = (near_y.float().T @ near_x.float()).flatten() > 0.5
    inside = inside_image(size, image_size, stride, mask_size, device).flatten()
    positive = (objects < len(boxes)) & inside
    labels = torch.where(positive, 1, torch.where(near | ~inside, -1, 0))
    return labels, objects


def sample_windows(labels: torch.Tensor, objects: torch.Tensor, rules: WindowRules) -> SampledWindows:
    """
    Sample up to ``windows_per_image`` random windows per image, at most ``positive_fraction`` of them positive.

    Args:
        labels, objects: (N, h * w), see `label_windows`.
    """
    total = min(rules.windows_per_image, labels.shape[1])
    max_positives = min(round(rules.windows_per_image * rules.positive_fraction), labels.shape[1])
    order = torch.rand(labels.shape, device=labels.device)
    rank, positives = torch.where(labels == 1, order, -1.0).topk(max_positives, dim=1)
    positives_used = rank >= 0
    rank, negatives = torch.where(labels == 0, order, -1.0).topk(total, dim=1)
    remaining = rules.windows_per_image - positives_used.sum(1, keepdim=True)
    negatives_used = (rank >= 0) & (torch.arange(total, device=labels.device) < remaining)
    return SampledWindows(positives, positives_used, negatives, negatives_used, objects.gather(1, positives))


def cell_masks(instances: Instances, size: tuple, stride: int, kind: str = "center") -> torch.Tensor:
    """
    The objects' masks at the (h, w) = ``size`` cells, followed by an empty mask.

    Args:
        kind: see ``cell_target`` of `WindowRules`.

    Returns:
        (M + 1, h, w) float32, 0 to 1.
    """
    rows, columns = size
    canvas = (rows * stride, columns * stride)
    if kind == "center":
        masks = canvas_masks([instances], canvas, stride, stride // 2).float()
    else:
        masks = canvas_masks([instances], canvas).view(-1, rows, stride, columns, stride)
        masks = masks.sum((2, 4), dtype=torch.int32) / stride**2
    return F.pad(masks, (0, 0, 0, 0, 0, 1))


def mask_targets(masks: Sequence[torch.Tensor], sampled: SampledWindows, mask_size: int):
    """
    The target masks of the windows in the positive slots.

    Args:
        masks: (M_i + 1, h, w) of each image i, see `cell_masks`.

    Returns:
        targets: (N, P, m, m) float32.
        inside: (N, P, m, m) bool, whether a cell lies on the feature map. Only these count in the loss.
    """
    height, width = masks[0].shape[-2:]
    starts = torch.tensor([0, *(len(x) for x in masks[:-1])]).cumsum(0).to(sampled.objects.device, non_blocking=True)
    rows, columns = window_corners(sampled.positives, width, mask_size)
    cell = torch.arange(mask_size, device=rows.device)
    rows, columns = rows[..., None] + cell, columns[..., None] + cell
    inside_y, inside_x = (rows >= 0) & (rows < height), (columns >= 0) & (columns < width)
    inside = inside_y[..., :, None] & inside_x[..., None, :]
    objects = (sampled.objects + starts[:, None])[..., None, None]
    rows, columns = rows.clamp(0, height - 1)[..., :, None], columns.clamp(0, width - 1)[..., None, :]
    return torch.cat(list(masks))[objects, rows, columns] * inside, inside
