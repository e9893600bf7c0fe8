"""Mask probabilities of EmbedMask as one operator, from pixel and proposal embeddings straight to the boxes' cells."""

from typing import Optional

import torch
from torch import Tensor

from . import extension, reference


def mask_prob(
    pixel_embeddings: Tensor,
    proposal_embeddings: Tensor,
    margins: Tensor,
    windows: Optional[Tensor],
    image_index: Tensor,
) -> Tensor:
    """Computes the log-probability that a cell belongs to an object (EmbedMask, arXiv 1912.01954).

    N images, M objects, D dimensions, maps of H x W cells, P cells in all windows together. With the embeddings
    p of a cell and q of an object, log phi = -sum_d margin_d (p_d - q_d)^2, where the paper's one margin is
    1 / (2 Sigma^2). Only the cells of the object's window are read and written, in one pass, without an
    intermediate tensor of D values per object and cell, in either direction.

    Args:
        pixel_embeddings: (N, D, H, W), float16, bfloat16, float32 or float64, any memory layout; D is at most 65,536
            and H * W below 2**31.
        proposal_embeddings: (M, D), below 2**31 values.
        margins: (M, 1), or (M, D) for one margin per dimension; at least 0.
        windows: (M, 4) int64, x1, y1, x2, y2 in cells: x1 <= x < x2 and y1 <= y < y2, inside the map, possibly
            empty (see ``grown_windows``); None: every object has the whole map.
        image_index: (M,) int64, the image of each object.

    Returns:
        (P,) log-probabilities, object after object (see ``window_offsets``), each row-major, in the common dtype of
        embeddings and margins; half types are summed in float32. Without windows, P = M * H * W and the result
        can be viewed as (M, H, W). A NaN affects only the cells and gradients that are computed from it.
        Differentiable once, with respect to embeddings and margins. Results and gradients are deterministic, on
        the CPU also for any number of threads. On CUDA the forward pass with windows waits for the device once,
        because P depends on their values.

    Raises:
        ValueError: an argument of the wrong shape, type or device; the message names it.
        IndexError: a window is not inside the map, or an image_index is out of range (on CUDA: a device-side
            assertion).
    """
    dtype = torch.promote_types(torch.promote_types(pixel_embeddings.dtype, proposal_embeddings.dtype), margins.dtype)
    arguments = (pixel_embeddings.to(dtype), proposal_embeddings.to(dtype), margins.to(dtype), windows, image_index)
    if extension.serves(pixel_embeddings.device.type):
        return torch.ops.instseg_d2.mask_prob(*arguments)[0]
    return reference.mask_prob(*arguments)


def window_offsets(windows: Tensor) -> Tensor:
    """(M + 1,) int64: where each of the (M, 4) windows begins in the result of ``mask_prob``, and finally P."""
    areas = (windows[:, 2:] - windows[:, :2]).prod(dim=1)
    return torch.cat([areas.new_zeros(1), areas.cumsum(dim=0)])


def grown_windows(boxes: Tensor, padding: float, height: int, width: int) -> Tensor:
    """The cells of a map of ``height`` x ``width`` that lie in the boxes grown by ``padding`` on each side.

    Args:
        boxes: (M, 4) floating-point, x1, y1, x2, y2 in cells.
        padding: in cells; column c is included if x1 - padding <= c < x2 + padding, and rows likewise.

    Returns:
        (M, 4) int64 windows for ``mask_prob``; empty where no cell is included or a corner is NaN.
    """
    boxes = boxes.detach().to(torch.promote_types(boxes.dtype, torch.float32))
    first, last = (boxes[:, :2] - padding).ceil(), (boxes[:, 2:] + padding).ceil()
    edges = torch.stack([first, torch.maximum(first, last)], dim=1)
    edges = torch.stack([edges[..., 0].clamp(0, width), edges[..., 1].clamp(0, height)], dim=2).flatten(1)
    return edges.masked_fill(boxes.isnan().any(dim=1, keepdim=True), 0).to(torch.int64)


def _fake(pixel_embeddings, proposal_embeddings, margins, windows, image_index):
    objects = proposal_embeddings.shape[0]
    if windows is None:
        _, _, height, width = pixel_embeddings.shape
        return pixel_embeddings.new_empty(objects * height * width), image_index.new_empty(0)
    cells = torch.library.get_ctx().new_dynamic_size()
    return pixel_embeddings.new_empty(cells), image_index.new_empty(objects + 1)


def _fake_backward(grad, pixel_embeddings, proposal_embeddings, margins, windows, image_index, offsets, cells):
    arguments = (pixel_embeddings, proposal_embeddings, margins)
    return tuple(torch.empty_like(argument, memory_format=torch.contiguous_format) for argument in arguments)


def _setup_context(ctx, inputs, output):
    values, offsets = output
    ctx.cells = values.shape[0]
    ctx.save_for_backward(*inputs, offsets)


def _backward(ctx, grad, _):
    return *torch.ops.instseg_d2._mask_prob_backward(grad, *ctx.saved_tensors, ctx.cells), None, None


def _refuse(ctx, *grads):
    raise NotImplementedError(
        "mask_prob can be differentiated once only: its gradients have no gradients. "
        "instseg_d2.ops.reference.mask_prob, in plain PyTorch, has them."
    )


if extension.has_extension():
    torch.library.register_fake("instseg_d2::mask_prob", _fake)
    torch.library.register_fake("instseg_d2::_mask_prob_backward", _fake_backward)
    torch.library.register_autograd("instseg_d2::mask_prob", _backward, setup_context=_setup_context)
    torch.library.register_autograd("instseg_d2::_mask_prob_backward", _refuse)
