"""The blender of BlendMask as one operator, from bases and attentions straight to mask logits."""

from typing import Optional

import torch
from torch import Tensor

from . import extension, reference, traceable


def blend_masks(
    bases: Tensor,
    boxes: Tensor,
    batch_index: Tensor,
    attention: Tensor,
    *,
    box_index: Optional[Tensor] = None,
    resolution: int = 56,
    spatial_scale: float = 0.25,
    top_interp: str = "bilinear",
) -> Tensor:
    """Blends the bases inside each box with its attention (BlendMask, arXiv 2001.00309, section 3.1, eq. 1-4).

    N images, M boxes, P masks, K bases, A attention size, R resolution. The bases are cropped as
    ``torchvision.ops.roi_align(..., sampling_ratio=1, aligned=True)`` crops them. The attention is resized
    from A x A to R x R as by ``torch.nn.functional.interpolate``, followed by a softmax over K. The product of
    the two is summed over K. This takes one pass, without an intermediate tensor of P x K x R x R values; on
    the CPU the masks of one box share its crop.

    Args:
        bases: (N, K, H, W), float16, bfloat16, float32 or float64, any memory layout, below 2**31 values per image.
        boxes: (M, 4), x1, y1, x2, y2 in pixels of the input image. They may reach beyond the image: what lies
            more than one cell outside the bases reads 0, whatever the bases hold; a NaN in the bases reaches only
            samples with a weight for its cell. A box with a NaN or infinite corner reads 0 throughout.
        batch_index: (M,) int64, the image of each box.
        attention: (P, K, A, A), before the softmax; A is at most 4096. -inf gives a basis the weight 0; where all
            bases have -inf, or one has NaN, the mask is NaN. With K = 1 the values do not matter.
        box_index: (P,) int64, the box of each mask; None: mask p belongs to box p, and P = M.
        resolution: R, in cells, from 1 to 4096.
        spatial_scale: cells of the bases per input pixel: 0.25 at stride 4.
        top_interp: how the attention is resized, "bilinear" or "nearest".

    Returns:
        (P, R, R) mask logits in the common dtype of bases and attention; half types are summed in float32.
        Differentiable once, with respect to bases and attention. Results and gradients are deterministic, on the
        CPU also for any number of threads. On CUDA the backward pass takes about 128 MB of scratch memory at most
        (more only if one mask alone needs it).

    Raises:
        ValueError: an argument of the wrong shape, type or device; the message names it.
        IndexError: a batch_index or box_index is out of range (on CUDA: a device-side assertion).
    """
    nearest = reference.is_nearest(top_interp)
    dtype = torch.promote_types(bases.dtype, attention.dtype)
    bases, attention, boxes = bases.to(dtype), attention.to(dtype), boxes.detach()
    if traceable.is_exporting() and box_index is None:
        return traceable.blend_masks(bases, boxes, batch_index, attention, resolution, spatial_scale, top_interp)
    if extension.serves(bases.device.type):
        return torch.ops.instseg_d2.blend_masks(
            bases, boxes, batch_index, attention, box_index, resolution, spatial_scale, nearest
        )
    return reference.blend_masks(
        bases,
        boxes,
        batch_index,
        attention,
        box_index=box_index,
        resolution=resolution,
        spatial_scale=spatial_scale,
        top_interp=top_interp,
    )


def _fake(bases, boxes, batch_index, attention, box_index, resolution, spatial_scale, nearest):
    return bases.new_empty((attention.shape[0], resolution, resolution))


def _fake_backward(grad, bases, boxes, batch_index, attention, box_index, spatial_scale, nearest):
    return torch.empty_like(bases), torch.empty_like(attention)


def _setup_context(ctx, inputs, output):
    bases, boxes, batch_index, attention, box_index, _, ctx.spatial_scale, ctx.nearest = inputs
    ctx.save_for_backward(bases, boxes, batch_index, attention, box_index)


def _backward(ctx, grad):
    bases_grad, attention_grad = torch.ops.instseg_d2._blend_masks_backward(
        grad, *ctx.saved_tensors, ctx.spatial_scale, ctx.nearest
    )
    return bases_grad, None, None, attention_grad, None, None, None, None


def _refuse(ctx, *grads):
    raise NotImplementedError(
        "blend_masks can be differentiated once only: its gradients have no gradients. "
        "instseg_d2.ops.reference.blend_masks, in plain PyTorch, has them."
    )


if extension.has_extension():
    torch.library.register_fake("instseg_d2::blend_masks", _fake)
    torch.library.register_fake("instseg_d2::_blend_masks_backward", _fake_backward)
    torch.library.register_autograd("instseg_d2::blend_masks", _backward, setup_context=_setup_context)
    torch.library.register_autograd("instseg_d2::_blend_masks_backward", _refuse)
