"""The operators in plain PyTorch, with the signatures, results and errors of the compiled ones.

The compiled operators are tested against them. They run when there is no extension.
"""

import math
from functools import partial
from typing import NamedTuple, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
    """See :func:`instseg_d2.ops.blend_masks`; keeps some tensors of P x K x R x R values for the gradients.

    It does not call torchvision's RoIAlign, which reads cells of weight 0 and, under
    ``torch.use_deterministic_algorithms(True)`` on CUDA, gives samples outside the bases the value of the border.
    """
    _check_blend_masks(bases, boxes, batch_index, attention, box_index, resolution)
    nearest = is_nearest(top_interp)
    dtype = torch.promote_types(bases.dtype, attention.dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    images = _in_range("blend_masks: batch_index", batch_index, bases.shape[0])
    corners = (boxes.detach().to(exact) * spatial_scale - 0.5)[..., None]
    rows = _box_taps(corners[:, 1], corners[:, 3], resolution, bases.shape[2])
    columns = _box_taps(corners[:, 0], corners[:, 2], resolution, bases.shape[3])
    crops = _crop(bases.to(exact), images, rows, columns)
    if box_index is not None:
        crops = crops.index_select(0, _in_range("blend_masks: box_index", box_index, boxes.shape[0]))
    taps = _resize_taps(attention.shape[-1], resolution, nearest, exact, attention.device)
    logits = attention.to(exact)
    logits = _Taps(*(t[:, None] for t in taps)).mix(logits.index_select(2, taps.low), logits.index_select(2, taps.high))
    logits = taps.mix(logits.index_select(3, taps.low), logits.index_select(3, taps.high))
    if bases.shape[1] == 1:
        logits = logits.nan_to_num()  # a single basis has weight 1, whatever its logit
    return (crops * logits.softmax(dim=1)).sum(dim=1).to(dtype)


class _Taps(NamedTuple):
    """
    Samples along an axis, each of two cells; a sample in the centre of a cell reads it twice, half each: a neighbour of
    weight 0 could be NaN or infinite.
    """

    low: Tensor
    high: Tensor
    w_high: Tensor
    inside: Tensor

    @classmethod
    def at(cls, places: Tensor, extent: int, inside: Tensor) -> "_Taps":
        """Samples at ``places``, in cells, on an axis that continues its first and last one."""
        places = torch.where(inside, places, 0).clamp(0, extent - 1)
        low = places.long()
        fraction = places - low
        between = fraction > 0
        return cls(low, low + between, torch.where(between, fraction, 0.5), inside)

    def mix(self, low: Tensor, high: Tensor) -> Tensor:
        return (1 - self.w_high) * low + self.w_high * high


def _box_taps(first: Tensor, last: Tensor, resolution: int, extent: int) -> _Taps:
    """(M, R), as RoIAlign samples boxes between two edges (M, 1), in cells; a box that is not finite is outside."""
    bins = (last - first) / resolution
    places = first + torch.arange(resolution, device=first.device) * bins + 0.5 * bins
    return _Taps.at(places, extent, (places >= -1) & (places <= extent))


def _resize_taps(size: int, resolution: int, nearest: bool, dtype: torch.dtype, device: torch.device) -> _Taps:
    """(R,), as ``torch.nn.functional.interpolate`` resizes an axis of ``size`` cells."""
    places = torch.arange(resolution, device=device, dtype=torch.float32 if nearest else dtype)
    if size != resolution:
        ratio = torch.tensor(size, device=device, dtype=places.dtype) / resolution
        places = (places * ratio).floor() if nearest else ratio * (places + 0.5) - 0.5
    return _Taps.at(places.to(dtype), size, torch.ones_like(places, dtype=torch.bool))


def _crop(planes: Tensor, images: Tensor, rows: _Taps, columns: _Taps) -> Tensor:
    """(M, K, R, R): planes (N, K, H, W) of the images (M,), between rows and columns (M, R)."""
    rows, columns = (_Taps(*(t.unsqueeze(dim) for t in taps)) for taps, dim in ((rows, 2), (columns, 1)))
    planes, images = planes.transpose(0, 1), images[:, None, None]
    lines = [columns.mix(planes[:, images, y, columns.low], planes[:, images, y, columns.high]) for y in rows[:2]]
    return torch.where(rows.inside & columns.inside, rows.mix(*lines), 0).transpose(0, 1)


def is_nearest(top_interp: str) -> bool:
    """Whether the attention of ``blend_masks`` is resized by the nearest cell instead of bilinearly."""
    if top_interp not in ("bilinear", "nearest"):
        raise ValueError(f'blend_masks: top_interp should be "bilinear" or "nearest", got {top_interp!r}')
    return top_interp == "nearest"


def dynamic_attention(rois: Tensor, matrices: Tensor, norm1: nn.LayerNorm, norm2: nn.LayerNorm) -> Tensor:
    """See :func:`instseg_d2.ops.dynamic_attention`."""
    channels, dim = norm2.normalized_shape[0], norm1.normalized_shape[0]
    first, second = matrices.split(channels * dim, dim=1)  # views, nothing is copied
    x = F.elu(norm1(torch.bmm(rois.to(first.dtype), first.view(-1, channels, dim))), inplace=True)
    return F.elu(norm2(torch.bmm(x.to(second.dtype), second.view(-1, dim, channels))), inplace=True)


def _check_blend_masks(bases, boxes, batch_index, attention, box_index, resolution) -> None:
    check = partial(_check, "blend_masks")
    masks, count = attention.shape[0], boxes.shape[0]
    check(
        bases.dim() == 4 and min(bases.shape[1:]) > 0 and bases.is_floating_point(),
        "bases should be (N, K, H, W) with K, H and W above 0",
        bases,
    )
    check(
        boxes.dim() == 2 and boxes.shape[1] == 4 and boxes.is_floating_point(),
        "boxes should be (M, 4) floating-point pixels x1, y1, x2, y2",
        boxes,
    )
    check(math.prod(bases.shape[1:]) < 2**31, "bases of one image should be below 2**31 values", bases)
    check(
        batch_index.shape == (count,) and batch_index.dtype == torch.int64,
        f"batch_index should be int64 of shape (M,) = ({count},)",
        batch_index,
    )
    check(
        attention.dim() == 4 and attention.shape[1] == bases.shape[1] and 0 < attention.shape[2] == attention.shape[3],
        f"attention should be (P, K, A, A) with the K = {bases.shape[1]} of bases",
        attention,
    )
    check(
        attention.shape[2] <= 4096 and math.prod(attention.shape[1:]) < 2**31,
        "attention should be at most 4096 x 4096 and one mask below 2**31 values",
        attention,
    )
    if box_index is None:
        check(masks == count, f"without box_index, attention should have one entry per box ({count})", attention)
    else:
        check(
            box_index.shape == (masks,) and box_index.dtype == torch.int64,
            f"box_index should be int64 of shape (P,) = ({masks},)",
            box_index,
        )
    _check_devices(
        "blend_masks", bases=bases, boxes=boxes, batch_index=batch_index, attention=attention, box_index=box_index
    )
    if not 1 <= resolution <= 4096:
        raise ValueError(f"blend_masks: resolution should be from 1 to 4096, got {resolution}")


def mask_prob(
    pixel_embeddings: Tensor,
    proposal_embeddings: Tensor,
    margins: Tensor,
    windows: Optional[Tensor],
    image_index: Tensor,
) -> Tensor:
    """See :func:`instseg_d2.ops.mask_prob`; loops over the dimensions, each keeps P values for the gradients."""
    _check_mask_prob(pixel_embeddings, proposal_embeddings, margins, windows, image_index)
    dtype = torch.promote_types(torch.promote_types(pixel_embeddings.dtype, proposal_embeddings.dtype), margins.dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    images, dims, height, width = pixel_embeddings.shape
    objects = proposal_embeddings.shape[0]
    images = _in_range("mask_prob: image_index", image_index, images)
    if windows is None:
        windows = image_index.new_tensor([0, 0, width, height]).expand(objects, 4)
    x1, y1, x2, y2 = windows.unbind(dim=1)
    areas = (x2 - x1) * (y2 - y1)
    owner = torch.arange(objects, device=windows.device).repeat_interleave(areas)
    place = torch.arange(len(owner), device=windows.device) - (areas.cumsum(dim=0) - areas)[owner]
    columns = (x2 - x1)[owner]
    cells = (images[owner] * height + y1[owner] + place // columns) * width + x1[owner] + place % columns
    margins = margins.to(exact).expand(objects, dims)
    planes = pixel_embeddings.to(exact).transpose(0, 1).flatten(1)
    total = planes.new_zeros(len(owner))
    for plane, proposal, margin in zip(planes, proposal_embeddings.to(exact).unbind(1), margins.unbind(1)):
        difference = plane.index_select(0, cells) - proposal.index_select(0, owner)
        total = total - margin.index_select(0, owner) * difference.square()
    return total.to(dtype)


def _check_mask_prob(pixel_embeddings, proposal_embeddings, margins, windows, image_index) -> None:
    check = partial(_check, "mask_prob")
    check(
        pixel_embeddings.dim() == 4 and min(pixel_embeddings.shape[1:]) > 0 and pixel_embeddings.is_floating_point(),
        "pixel_embeddings should be floating-point (N, D, H, W) with D, H and W above 0",
        pixel_embeddings,
    )
    _, dims, height, width = pixel_embeddings.shape
    check(dims <= 65536, "pixel_embeddings should have at most D = 65536 dimensions", pixel_embeddings)
    check(height * width < 2**31, "pixel_embeddings should have below 2**31 cells per image", pixel_embeddings)
    check(
        proposal_embeddings.dim() == 2 and proposal_embeddings.shape[1] == dims,
        f"proposal_embeddings should be (M, D) with the D = {dims} of pixel_embeddings",
        proposal_embeddings,
    )
    objects = proposal_embeddings.shape[0]
    check(objects * dims < 2**31, "proposal_embeddings should be below 2**31 values", proposal_embeddings)
    check(
        margins.shape in ((objects, 1), (objects, dims)),
        f"margins should be (M, 1) or (M, D) = ({objects}, {dims})",
        margins,
    )
    check(
        image_index.shape == (objects,) and image_index.dtype == torch.int64,
        f"image_index should be int64 of shape (M,) = ({objects},)",
        image_index,
    )
    _check_devices(
        "mask_prob",
        pixel_embeddings=pixel_embeddings,
        proposal_embeddings=proposal_embeddings,
        margins=margins,
        windows=windows,
        image_index=image_index,
    )
    if windows is None:
        return
    check(
        windows.shape == (objects, 4) and windows.dtype == torch.int64,
        f"windows should be int64 of shape (M, 4) = ({objects}, 4)",
        windows,
    )
    first, last, size = windows[:, :2], windows[:, 2:], windows.new_tensor([width, height])
    wrong = windows[((first < 0) | (first > last) | (last > size)).any(dim=1)]
    if len(wrong):
        raise IndexError(
            f"mask_prob: windows holds {wrong[0].tolist()}, it should be x1 <= x2 and y1 <= y2 inside the map of "
            f"{height} x {width} cells"
        )


def assemble_instances(
    score_maps: Tensor, windows: Tensor, mask_size: int, grid: int, outside: float = -10.0
) -> Tensor:
    """See :func:`instseg_d2.ops.assemble_instances`; three index tensors of M x m x m and one read of the maps."""
    _check_assemble_instances(score_maps, windows, mask_size, grid)
    images, _, height, width = score_maps.shape
    image = _in_range("assemble_instances: the image of windows", windows[:, 0], images)
    cells = torch.arange(mask_size, device=windows.device)
    y = windows[:, 1, None].clamp(-mask_size, height) + cells
    x = windows[:, 2, None].clamp(-mask_size, width) + cells
    inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
    part = cells * grid // mask_size
    maps = part[:, None] * grid + part
    rows, columns = y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]
    exact = torch.float64 if score_maps.dtype == torch.float64 else torch.float32
    values = score_maps.to(exact)[image[:, None, None], maps, rows, columns]
    return torch.where(inside, values, outside).to(score_maps.dtype)


def _check_assemble_instances(score_maps, windows, mask_size, grid) -> None:
    check = partial(_check, "assemble_instances")
    if not 1 <= grid <= 1024:
        raise ValueError(f"assemble_instances: grid should be from 1 to 1024, got {grid}")
    check(
        score_maps.dim() == 4 and min(score_maps.shape[2:]) > 0 and score_maps.shape[1] == grid * grid,
        f"score_maps should be (N, k*k, H, W) with k = grid = {grid} and H and W above 0",
        score_maps,
    )
    check(math.prod(score_maps.shape[1:]) < 2**30, "score_maps of one image should be below 2**30 values", score_maps)
    check(score_maps.is_floating_point(), "score_maps should be floating-point", score_maps)
    check(
        windows.dim() == 2 and windows.shape[1] == 3 and windows.dtype == torch.int64,
        "windows should be int64 of shape (M, 3)",
        windows,
    )
    _check_devices("assemble_instances", score_maps=score_maps, windows=windows)
    if not 1 <= mask_size <= 4096:
        raise ValueError(f"assemble_instances: mask_size should be from 1 to 4096, got {mask_size}")


def _check(op: str, right: bool, should: str, tensor: Tensor) -> None:
    if not right:
        raise ValueError(f"{op}: {should}, got {tensor.dtype} of shape {tuple(tensor.shape)}")


def _check_devices(op: str, **tensors: Optional[Tensor]) -> None:
    """Checks that every tensor is on the device of the first one."""
    (first_name, first), *others = tensors.items()
    for name, tensor in others:
        if tensor is not None and tensor.device != first.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device}, it should be on the device of {first_name}, {first.device}"
            )


def _in_range(name: str, index: Tensor, limit: int) -> Tensor:
    """Returns ``index`` after checking that it lies in [0, limit); on a GPU by a device-side assertion."""
    if index.device.type == "cpu":
        wrong = index[(index < 0) | (index >= limit)]
        if len(wrong):
            raise IndexError(f"{name} holds {int(wrong[0])}, it should be at least 0 and below {limit}")
    return torch.arange(limit, device=index.device).index_select(0, index)
