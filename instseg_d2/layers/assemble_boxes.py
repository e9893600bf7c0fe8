"""
Crops feature maps to boxes, and assembles position-sensitive masks inside boxes of any size.

N images, D boxes, C channels, k grid, R resolution, h x w cells of a map. Boxes are x1, y1, x2, y2 in input pixels.
"""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes
from torch import Tensor
from torchvision.ops import roi_align

__all__ = ["assemble_boxes", "crop_boxes", "crop_nearest", "join_boxes"]


def join_boxes(boxes: Sequence[Boxes]) -> tuple[Tensor, Tensor]:
    """Concatenate the boxes of N images: boxes (D, 4) and the image index of each, (D,) int64."""
    tensor = torch.cat([x.tensor for x in boxes])
    index = torch.cat([torch.full((len(x),), image) for image, x in enumerate(boxes)])
    return tensor, index.to(tensor.device, non_blocking=True)


def crop_nearest(maps: Tensor, boxes: Tensor, batch_index: Tensor, resolution: int, spatial_scale: float) -> Tensor:
    """Divide each box into R x R parts and read the cell at each part's centre, or 0 outside: (D, C, R, R)."""
    height, width = maps.shape[-2:]
    cells = (torch.arange(resolution, device=boxes.device) + 0.5) / resolution
    scaled = boxes * spatial_scale
    x = (scaled[:, 0, None] + cells * (scaled[:, 2] - scaled[:, 0])[:, None]).floor().long()
    y = (scaled[:, 1, None] + cells * (scaled[:, 3] - scaled[:, 1])[:, None]).floor().long()
    inside = ((y >= 0) & (y < height))[:, None, :, None] & ((x >= 0) & (x < width))[:, None, None, :]
    channel = torch.arange(maps.shape[1], device=maps.device)[:, None, None]
    y, x = y.clamp(0, height - 1)[:, None, :, None], x.clamp(0, width - 1)[:, None, None, :]
    return maps[batch_index[:, None, None, None], channel, y, x] * inside


def crop_boxes(
    maps: Tensor,
    boxes: Tensor,
    batch_index: Tensor,
    resolution: int,
    spatial_scale: float,
    *,
    sampling_ratio: int = 0,
    aligned: bool = True,
    interpolation: str = "bilinear",
) -> Tensor:
    """
    Crop the maps to each box.

    Args:
        maps: (N, C, h, w), any floating dtype.
        boxes: (D, 4).
        batch_index: (D,) int64, the image of each box.
        resolution: R.
        spatial_scale: cells of the maps per input pixel.
        sampling_ratio, aligned: see RoIAlign.
        interpolation: "bilinear" (RoIAlign, in float32) or "nearest" (see `crop_nearest`).

    Returns:
        (D, C, R, R).
    """
    if interpolation == "nearest":
        return crop_nearest(maps, boxes, batch_index, resolution, spatial_scale)
    # In half precision coordinates would be off by pixels.
    rois = torch.cat([batch_index[:, None].float(), boxes.float()], dim=1)
    return roi_align(maps.float(), rois, resolution, spatial_scale, sampling_ratio=sampling_ratio, aligned=aligned)


def assemble_boxes(
    score_maps: Tensor,
    boxes: Tensor,
    batch_index: Tensor,
    grid: int,
    resolution: int,
    spatial_scale: float,
    *,
    sampling_ratio: int = 0,
    aligned: bool = True,
    interpolation: str = "bilinear",
) -> Tensor:
    """
    Assemble position-sensitive masks inside boxes, as in FCIS (arXiv 1611.07709) and InstanceFCN: cell (i, j) of R x R
    lies in part (floor(i k / R), floor(j k / R)) and reads the map of that part, at the points where RoIAlign of the
    whole box would sample the cell.

    Each part is cropped only from its own map, which samples k * k times fewer cells than cropping all maps.

    Args:
        score_maps: (N, k * k * C, h, w), channel (row * k + column) * C + c.
        boxes, batch_index, spatial_scale, aligned, interpolation: as in `crop_boxes`.
        grid: k.
        resolution: R; need not be a multiple of k.
        sampling_ratio: see RoIAlign. With 0, a cell as wide as a whole number of map cells may get one sample more than
            in RoIAlign of the whole box.

    Returns:
        (D, C, R, R).
    """
    parts = grid * grid
    images, channels, height, width = score_maps.shape
    channels //= parts
    folded = score_maps.reshape(images * parts, channels, height, width)
    boxes = boxes.float()
    if interpolation == "bilinear" and not aligned:
        # RoIAlign with aligned=False moves a box by half a cell and makes it at least one cell wide.
        low, high = (boxes + 0.5 / spatial_scale).split(2, dim=1)
        boxes, aligned = torch.cat([low, torch.maximum(high, low + 1 / spatial_scale)], dim=1), True

    # If R is not a multiple of k, parts differ by a cell. Crop all at the size of the largest.
    size = -(-resolution // grid)
    steps = torch.arange(grid, device=boxes.device)
    first = (steps * resolution + grid - 1) // grid  # the first cell of each part
    edges = torch.stack([first, first + size]).to(boxes) / resolution  # (2, k), as shares of the box
    low, extent = boxes[:, None, :2], (boxes[:, 2:] - boxes[:, :2])[:, None]
    x1, y1, x2, y2 = torch.cat([low + extent * edges[0, :, None], low + extent * edges[1, :, None]], dim=2).unbind(2)
    rows, columns = steps.repeat_interleave(grid), steps.repeat(grid)
    part_boxes = torch.stack([x1[:, columns], y1[:, rows], x2[:, columns], y2[:, rows]], dim=2)
    part_index = batch_index[:, None] * parts + torch.arange(parts, device=boxes.device)

    crops = crop_boxes(
        folded,
        part_boxes.flatten(0, 1),
        part_index.flatten(),
        size,
        spatial_scale,
        sampling_ratio=sampling_ratio,
        aligned=aligned,
        interpolation=interpolation,
    )
    crops = crops.view(len(boxes), grid, grid, channels, size, size).permute(0, 3, 1, 4, 2, 5)
    crops = crops.reshape(len(boxes), channels, grid * size, grid * size)
    cells = torch.arange(resolution, device=boxes.device)
    part = cells * grid // resolution
    place = part * size + cells - first[part]
    return crops.index_select(2, place).index_select(3, place)
