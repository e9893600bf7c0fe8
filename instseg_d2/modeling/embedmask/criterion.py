"""
The mask loss and the smooth loss of EmbedMask, in float32.

N images, M objects, Q candidates (positive locations that predict the objects' proposals), P cells of all windows, E
embedding dimensions, h x w cells of the pixel embedding.
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

# Cells per chunk of the mask loss. Sorting takes about 100 bytes per cell; a GPU waits for the host once per chunk.
CHUNK_CELLS = 2**19
CHUNK_CELLS_ON_GPU = 2**22


def probability_logits(log_probabilities: torch.Tensor, minimum: float) -> torch.Tensor:
    """
    log(p / (1 - p)) from log p, with finite values and gradients also for p = 0 and p = 1.

    Args:
        log_probabilities: (P,), at most 0.
        minimum: p is clamped to at least this.
    """
    log_p = log_probabilities.float()
    if minimum > 0:
        log_p = log_p.exp().clamp(min=minimum).log()
    # The largest float32 below 1 is 1 - 2^-24.
    return log_p - (1 - log_p.exp()).clamp(min=2.0**-24).log()


class _ObjectLosses(torch.autograd.Function):
    """
    The Lovasz hinge (section 3.4) of each object. The gradient is computed in the forward pass and is the only tensor
    of this size kept for the backward pass.
    """

    @staticmethod
    def forward(ctx, log_probabilities, labels, counts, minimum: float):
        """
        Args:
            log_probabilities: (P,), object after object.
            labels: (P,) bool.
            counts: (M,) int64, number of cells of each object.
            minimum: see `probability_logits`.

        Returns:
            (M,); 0 for an object without cells.
        """
        leaf = log_probabilities.detach().requires_grad_()
        owners = torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(leaf))
        with torch.enable_grad():
            losses = lovasz_hinge(probability_logits(leaf, minimum), labels, owners, len(counts))
            (gradient,) = torch.autograd.grad(losses.sum(), leaf)
        ctx.save_for_backward(gradient, counts)
        return losses.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        gradient, counts = ctx.saved_tensors
        return grad.repeat_interleave(counts, output_size=len(gradient)) * gradient, None, None, None


def split_objects(cells: Sequence[int], limit: int) -> list[tuple[int, int]]:
    """
    Split objects into chunks [first, last) of at most ``limit`` cells; a larger object is a chunk of its own.

    Without objects there is one empty chunk, so that all parameters still get a gradient.
    """
    parts, remaining = [], 0
    for index, count in enumerate(cells):
        if count > remaining or not parts:
            parts.append((index, index))
            remaining = limit
        parts[-1] = (parts[-1][0], index + 1)
        remaining -= count
    return parts or [(0, 0)]


def mean_per_object(values: torch.Tensor, objects: torch.Tensor, num_objects: int):
    """Mean of ``values`` (Q, X) per object (Q,), and the number of values of each object: (M, X), (M,) int64."""
    counts = torch.zeros(num_objects, dtype=torch.int64, device=values.device)
    counts.index_add_(0, objects, torch.ones_like(objects))
    sums = values.new_zeros((num_objects, values.shape[1])).index_add(0, objects, values)
    return sums / counts.clamp(min=1)[:, None], counts


def object_weights(images: torch.Tensor, num_images: int) -> torch.Tensor:
    """(M,) weights that average over the objects of each image, then over all images, including empty ones."""
    counts = torch.zeros(num_images, dtype=torch.int64, device=images.device)
    counts.index_add_(0, images, torch.ones_like(images))
    return 1 / (counts[images] * num_images)


class MaskCriterion:
    """
    The mask loss and, in v1, the smooth loss.

    Args:
        averaged: use the mean of an object's candidates as its proposal; the smooth loss pulls the candidates together.
        min_probability: probabilities are clamped to at least this.
        stride: stride of the pixel embeddings, pixels.
        iou_threshold: minimum IoU of the candidates' predicted boxes, if averaged.
        box_padding: how far the mask loss reaches beyond a box, relative to its sides; below 0: the whole map.
        mask_weight, smooth_weight: weights of the losses.
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
        """Choose candidates among the positives by the IoU of their predicted boxes: (Q,) indices."""
        boxes = truth.boxes[positives.objects]
        ious = box_ious(decode(outputs, positives.rows), boxes, truth.inclusive)
        return choose_locations(ious, positives.objects, len(truth.boxes), self.iou_threshold, self.averaged)

    def __call__(
        self, pixels, embeddings, margins, objects, truth: GroundTruth, fixed_margin: Optional[float] = None
    ) -> dict:
        """
        Args:
            pixels: (N, E, h, w) pixel embeddings.
            embeddings, margins: (Q, E) and (Q, 1 or E) of the candidates.
            objects: (Q,) int64, the object of each candidate.
            fixed_margin: replaces the predicted margins in the masks.

        Returns:
            the weighted losses: mask_loss and, if proposals are averaged, smooth_loss.
        """
        candidates = torch.cat([embeddings, margins], dim=1)
        means, counts = mean_per_object(candidates, objects, len(truth.boxes))
        present = counts.nonzero()[:, 0] if self.averaged else objects  # without means, one candidate per object
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
        """The Lovasz hinge (section 3.4) of ``objects`` (m,), one proposal each: (m,); 0 for an empty window."""
        height, width = pixels.shape[-2:]
        windows = training_windows(truth.boxes[objects], self.stride, self.box_padding, (height, width))
        log_probabilities = ops.mask_prob(pixels, embeddings, margins, windows, truth.images[objects])
        targets = truth.cells(self.stride)[objects]
        counts = torch.full_like(objects, height * width) if windows is None else window_sides(windows).prod(1)
        total, most = len(log_probabilities), CHUNK_CELLS_ON_GPU if pixels.is_cuda else CHUNK_CELLS
        parts = [(0, len(objects), total)]  # first and last object, number of cells
        if total > most:  # only then the host needs the counts
            cells = [height * width] * len(objects) if windows is None else counts.tolist()
            parts = [(first, last, sum(cells[first:last])) for first, last in split_objects(cells, most)]
        losses = []
        for (first, last, size), values in zip(parts, log_probabilities.split([size for *_, size in parts])):
            if windows is None:
                labels = targets[first:last].flatten()
            else:
                window, _, y, x = window_cells(windows[first:last], 0, size)
                labels = targets[first + window, y, x]
            losses.append(_ObjectLosses.apply(values, labels, counts[first:last], self.min_probability))
        return torch.cat(losses)
