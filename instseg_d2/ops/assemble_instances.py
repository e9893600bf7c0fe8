"""The assembling module of InstanceFCN as one operator, from instance-sensitive score maps to masks of windows."""

import torch
from torch import Tensor

from . import extension, reference, traceable


def assemble_instances(
    score_maps: Tensor, windows: Tensor, mask_size: int, grid: int, outside: float = -10.0
) -> Tensor:
    """Assembles the mask of each window from k x k score maps (InstanceFCN, arXiv 1603.08678, section 3.1).

    N images, M windows of m x m cells, k grid, maps of H x W cells. Cell (i, j) of a window lies in part
    (floor(i k / m), floor(j k / m)) and reads the map of that part at its own position; m need not be a multiple of k.
    Only the output is allocated, and the gradient needs only the windows, not the maps.

    Args:
        score_maps: (N, k * k, H, W) logits, part (row, column) at row * k + column; float16, bfloat16, float32 or
            float64, any memory layout, below 2**30 values per image.
        windows: (M, 3) int64: image, top and left, in cells. They may reach beyond the maps or lie outside.
        mask_size: m, in cells, from 1 to 4096.
        grid: k, from 1 to 1024.
        outside: the value of cells outside the maps, without gradient; the default is a logit for no object.

    Returns:
        (M, m, m) in the dtype of the maps. Differentiable once, with respect to the maps; half types are summed in
        float32. Results and gradients are deterministic, on CUDA too: windows are added in their order.

    Raises:
        ValueError: an argument of the wrong shape, type or device; the message names it.
        IndexError: an image index in windows is out of range (on CUDA: a device-side assertion).
    """
    if traceable.is_exporting():
        return traceable.assemble_instances(score_maps, windows, mask_size, grid, outside)
    if extension.serves(score_maps.device.type):
        return torch.ops.instseg_d2.assemble_instances(score_maps, windows, mask_size, grid, outside)
    return reference.assemble_instances(score_maps, windows, mask_size, grid, outside)


def _fake(score_maps, windows, mask_size, grid, outside):
    return score_maps.new_empty((windows.shape[0], mask_size, mask_size))


def _fake_backward(grad, windows, images, height, width, grid):
    return grad.new_empty((images, grid * grid, height, width))


def _setup_context(ctx, inputs, output):
    score_maps, windows, _, ctx.grid, _ = inputs
    ctx.images, _, ctx.height, ctx.width = score_maps.shape
    ctx.save_for_backward(windows)


def _backward(ctx, grad):
    maps_grad = torch.ops.instseg_d2._assemble_instances_backward(
        grad, *ctx.saved_tensors, ctx.images, ctx.height, ctx.width, ctx.grid
    )
    return maps_grad, None, None, None, None


def _refuse(ctx, *grads):
    raise NotImplementedError(
        "assemble_instances can be differentiated once only: its gradient has no gradient. "
        "instseg_d2.ops.reference.assemble_instances, in plain PyTorch, has it."
    )


if extension.has_extension():
    torch.library.register_fake("instseg_d2::assemble_instances", _fake)
    torch.library.register_fake("instseg_d2::_assemble_instances_backward", _fake_backward)
    torch.library.register_autograd("instseg_d2::assemble_instances", _backward, setup_context=_setup_context)
    torch.library.register_autograd("instseg_d2::_assemble_instances_backward", _refuse)
