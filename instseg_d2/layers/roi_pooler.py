"""Detectron2's ROIPooler as a graph of fixed sizes. D boxes, R x R cells of a crop, C channels."""

from collections.abc import Callable, Sequence

import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor

from ..ops import traceable
from .assemble_boxes import join_boxes


def pool_levels(
    maps: Sequence[Tensor], scales: Sequence[float], poolers: Sequence[Callable], boxes: Tensor, image, level
) -> Tensor:
    """
    Pool each box from one of the maps, without sizes that depend on the boxes: every map is pooled at all boxes, where
    the boxes of other levels lie outside and read 0.

    Args:
        maps: (N, C, h_l, w_l); scales: their cells per pixel.
        poolers: for each map a function of the map and (D, 5) image, x1, y1, x2, y2.
        boxes: (D, 4) in pixels; image, level: (D,) int64, where to pool them.

    Returns:
        (D, C, R, R).
    """
    total = 0
    outside = torch.tensor([-4.0, -4.0, -3.0, -3.0], device=boxes.device)  # cells; OpenVINO cannot pool empty boxes
    for index, (x, scale, pool) in enumerate(zip(maps, scales, poolers)):
        placed = torch.where((level == index)[:, None], boxes, outside / scale)
        total = total + pool(x, torch.cat([image[:, None].to(boxes.dtype), placed], dim=1))
    return total


def pool_boxes(pooler: ROIPooler, maps: Sequence[Tensor], boxes: Sequence[Boxes]) -> Tensor:
    """The same as ``pooler(maps, boxes)``, for export."""
    poolers = list(pooler.level_poolers)
    tensor, image = join_boxes(boxes)
    limits = pooler.min_level, pooler.max_level, pooler.canonical_box_size, pooler.canonical_level
    level = assign_boxes_to_levels(boxes, *limits) if len(poolers) > 1 else torch.zeros_like(image)
    return pool_levels(maps, [x.spatial_scale for x in poolers], poolers, tensor, image, level)


class TraceablePooler(ROIPooler):
    """Detectron2's ROIPooler, which can also be exported."""

    def forward(self, x: list[Tensor], box_lists: list[Boxes]) -> Tensor:
        """See Detectron2's."""
        return pool_boxes(self, x, box_lists) if traceable.is_exporting() else super().forward(x, box_lists)
