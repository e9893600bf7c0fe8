"""
The mask loss and the smooth loss of EmbedMask, in float32.

N images, M objects of the batch, Q candidates (the positive locations that make the objects' proposals), P cells of all
windows, E dimensions of the embedding, h x w cells of the map.
"""

from collections.abc import Sequence
from typing import Optional

import torch
from torch.autograd.function import once_differentiable

from ... import ops
from ..losses.lovasz import lovasz_hinge
from ..proposal_generator.fcos_inference import decode
from .targets import GroundTruth, box_ious, choose_locations
from .window_masks import training_windows, window_cells, window_sides

# Number of cells that the mask loss processes at a time. Sorting takes about 100 bytes per cell; a GPU waits for the
# host once per part.
CHUNK_CELLS = 2**19
CHUNK_CELLS_ON_GPU = 2**22


def probability_logits(log_probabilities: torch.Tensor, least: float) -> torch.Tensor:
    """
    log(p / (1 - p)) from log p; value and gradient are finite even if p is 0 or 1.

    Args:
        log_probabilities: (P,), at most 0.
        least: a smaller p is raised to this and gets no gradient.
    """
    log_p = log_probabilities.float()
    if least > 0:
        log_p = log_p.exp().clamp(min=least).log()
    # The greatest float32 below 1 is 1 - 2^-24.
    return log_p - (1 - log_p.exp()).clamp(min=2.0**-24).log()


class _ObjectLosses(torch.autograd.Function):
    """
    The Lovasz hinge (section 3.4) of objects. Its gradient is computed in the forward pass, so that no other tensor is
    kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, log_probabilities, labels, counts, least: float):
        """
        Args:
            log_probabilities: (P,), object after object; labels: (P,) bool.
            counts: (M,) int64 cells of each object.

        Returns:
            (M,); 0 for one without cells.
        """
        leaf = log_probabilities.detach().requires_grad_()
        owners = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(leaf))
        with torch.enable_grad():
            losses = lovasz_hinge(probability_logits(leaf, least), labels, owners, len(counts))
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        ctx.save_for_backward(gradient, counts)
        return losses.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gradient, counts = ctx.saved_tensors
        return grad.repeat_interleave(counts, output_size=len(gradient)) * gradient, None, None, None


def split_objects(cells: Sequence[int], most: int) -> list[tuple[int, int]]:
    """
    Split objects into runs [first, last) of at most ``most`` cells together; a larger object is a run of its own.

    Without objects there is one empty run, so that gradients still reach everything.
    """
    parts, room = [], 0
    for index, count in enumerate(cells):
        if count > room or not parts:
            parts.append((index, index))
            room = most
        parts[-1] = (parts[-1][0], index + 1)
        room -= count
    return parts or [(0, 0)]


def mean_per_object(values: torch.Tensor, objects: torch.Tensor, num_objects: int):
    """Mean of the rows (Q, X) of each object (Q,), and the number of its rows: (M, X) and (M,) int64."""
    counts = torch.zeros(num_objects, dtype=torch.int64, device=values.device)
    counts.index_add_(0, objects, torch.ones_like(objects))
    sums = values.new_zeros((num_objects, values.shape[1])).index_add(0, objects, values)
    return sums / counts.clamp(min=1)[:, None], counts


def object_weights(images: torch.Tensor, num_images: int) -> torch.Tensor:
    """(M,) weights that average over the objects of each image (M,), then over all images, also empty ones."""
    counts = torch.zeros(num_images, dtype=torch.int64, device=images.device)
    counts.index_add_(0, images, torch.ones_like(images))
    return 1 / (counts[images] * num_images)


class MaskCriterion:
    """
    Args:
        averaged: an object's proposal is the mean of its candidates, and the smooth loss pulls these together.
        min_probability: smaller probabilities are raised to it.
        stride: pixels of a cell of the pixel embeddings.
        iou_threshold: of the candidates' predicted boxes, if averaged.
        box_padding: how far the mask loss reaches beyond a box, as a share of its sides; below 0: the whole map.
        mask_weight, smooth_weight: factors of the losses.
    """

    def __init__(
        self, *, averaged, min_probability, stride, iou_threshold, box_padding, mask_weight=0.5, smooth_weight=0.1
    ):
        self.averaged = averaged
        self.min_probability = min_probability
        self.stride = stride
        self.iou_threshold = iou_threshold
        self.box_padding = box_padding
        self.mask_weight = mask_weight
        self.smooth_weight = smooth_weight

    @torch.no_grad()
    def choose(self, outputs, positives, truth: GroundTruth) -> torch.Tensor:
        """The positives (Q,) that are candidates, by the IoU of their predicted boxes."""
        boxes = truth.boxes[positives.objects]
        ious = box_ious(decode(outputs, positives.rows), boxes, truth.inclusive)
        return choose_locations(ious, positives.objects, len(truth.boxes), self.iou_threshold, self.averaged)

    def __call__(
        self, pixels, embeddings, margins, objects, truth: GroundTruth, fixed_margin: Optional[float] = None
    ) -> dict:
        """
        Args:
            pixels: (N, E, h, w) pixel embeddings.
            embeddings: (Q, E), margins: (Q, 1 or E) of the candidates; objects: (Q,) int64.
            fixed_margin: used for the masks instead of the predicted ones.

        Returns:
            the weighted losses: mask_loss and, where proposals are averaged, smooth_loss.
        """
        candidates = torch.cat([embeddings, margins], dim=1)
        means, counts = mean_per_object(candidates, objects, len(truth.boxes))
        present = counts.nonzero()[:, 0]
        losses = {}
        if self.averaged:
            weights = object_weights(truth.images, truth.num_images)
            squares = (candidates - means[objects]).square().sum(1)
            losses["smooth_loss"] = self.smooth_weight * (squares * weights[objects]).sum()
            weights = weights[present]
        else:
            weights = object_weights(truth.images[present], truth.num_images)

        embeddings, margins = means[present].split([embeddings.shape[1], margins.shape[1]], dim=1)
        if fixed_margin is not None:
            margins = torch.full_like(margins, fixed_margin)
        per_object = self._mask_losses(pixels, embeddings, margins, present, truth)
        losses["mask_loss"] = self.mask_weight * (per_object * weights).sum()
        return losses

    def _mask_losses(self, pixels, embeddings, margins, objects, truth: GroundTruth) -> torch.Tensor:
        """The Lovasz hinge (section 3.4) of the proposals of objects (m,): (m,); 0 for an empty window."""
        height, width = pixels.shape[-2:]
        windows = training_windows(truth.boxes[objects], self.stride, self.box_padding, (height, width))
        log_probabilities = ops.mask_prob(pixels, embeddings, margins, windows, truth.images[objects])
        targets = truth.cells(self.stride)[objects]
        if windows is None:
            counts = torch.full_like(objects, height * width)
            cells = [height * width] * len(objects)
        else:
            counts = window_sides(windows).prod(1)
            cells = counts.tolist()
        losses, start = [], 0
        for first, last in split_objects(cells, CHUNK_CELLS_ON_GPU if pixels.is_cuda else CHUNK_CELLS):
            stop = start + sum(cells[first:last])
            if windows is None:
                labels = targets[first:last].flatten()
            else:
                window, _, y, x = window_cells(windows[first:last], 0, stop - start)
                labels = targets[first + window, y, x]
            values = log_probabilities[start:stop]
            losses.append(_ObjectLosses.apply(values, labels, counts[first:last], self.min_probability))
            start = stop
        return torch.cat(losses)
