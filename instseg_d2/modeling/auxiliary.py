"""
A dense head beside a query-based method, which only training has.

Queries that are matched one to one give the features few and changing targets at first. FCOS has a target at every
location from the first step on, so the features learn what and where the objects are as fast as those of a dense method
(Zong et al., Co-DETR, arXiv 2211.12860).

N images, C channels, h x w cells of a map.
"""

from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import nn

from .proposal_generator.fcos import FCOS
from .proposal_generator.fcos_head import FCOSHead

__all__ = ["AuxiliaryFCOS", "auxiliary_parts"]


class AuxiliaryFCOS(nn.Module):
    """
    The losses of FCOS on feature maps.

    Args:
        shapes: name -> channels, the same for all, and stride of each map, finest first. A map is for the objects of
            up to 8 strides, the last one for all larger ones.
        num_classes: number of foreground classes.
        num_convs: convolutions of the class tower and of the box tower.
        norm: their norm.
        weight: factor of the losses.
    """

    def __init__(self, shapes: dict[str, ShapeSpec], num_classes: int, *, num_convs: int, norm: str, weight: float):
        super().__init__()
        strides = [shape.stride for shape in shapes.values()]
        head = FCOSHead(
            channels=next(iter(shapes.values())).channels,
            strides=strides,
            num_classes=num_classes,
            num_class_convs=num_convs,
            num_box_convs=num_convs,
            norm=norm,
        )
        self.fcos = FCOS(head=head, in_features=list(shapes), size_bounds=[8.0 * stride for stride in strides[:-1]])
        self.weight = weight

    def forward(self, features: dict[str, torch.Tensor], gt_instances: Sequence[Instances]) -> dict[str, torch.Tensor]:
        """features: name -> (N, C, h, w) -> loss_aux_cls, loss_aux_loc and loss_aux_ctr, weighted."""
        outputs = self.fcos.outputs(features)
        losses, *_ = self.fcos.losses(outputs, self.fcos.match(outputs, gt_instances), gt_instances)
        return {name.replace("fcos", "aux"): self.weight * loss for name, loss in losses.items()}


def auxiliary_parts(cfg, shapes: dict[str, ShapeSpec], num_classes: int) -> dict[str, nn.Module]:
    """{"auxiliary": the head of MODEL.AUXILIARY}, or {} if its weight is 0; see `AuxiliaryFCOS`."""
    node = cfg.MODEL.AUXILIARY
    if not node.WEIGHT:
        return {}
    head = AuxiliaryFCOS(shapes, num_classes, num_convs=node.NUM_CONVS, norm=node.NORM, weight=node.WEIGHT)
    return {"auxiliary": head}
