"""
The convolutional head of FCOS.

N images, C channels, K classes, X rows (see layers/locations.py), h x w cells of a level.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import nn

from ...config.fcos import serves_roi_heads
from ...layers import ConvTower, LocationGrid, flatten_levels, init_normal


@dataclass
class HeadOutputs:
    """
    Predictions at all locations. Rows run over level, image, y, x.

    Attributes:
        grid: maps rows to locations.
        class_logits: (X, K).
        ltrb: (X, 4) distances to the box sides in strides of the level, at least 0.
        quality_logits: (X,) centerness or IoU.
        box_tower: one (N, C, h, w) map per level, the input of box regression, quality and top layers.
    """

    grid: LocationGrid
    class_logits: torch.Tensor
    ltrb: torch.Tensor
    quality_logits: torch.Tensor
    box_tower: list


class FCOSHead(nn.Module):
    """Predicts class logits, box distances and box quality; all levels share the towers (FCOS, figure 2)."""

    @configurable
    def __init__(
        self,
        *,
        channels: int,
        strides: Sequence[int],
        num_classes: int,
        num_shared_convs: int = 0,
        num_class_convs: int = 4,
        num_box_convs: int = 4,
        norm: str = "GN",
        deformable: bool = False,
        use_scale: bool = True,
        prior_prob: float = 0.01,
    ):
        """
        Args:
            channels: C, the same for every level.
            strides: stride of each level, pixels.
            num_classes: number of foreground classes.
            norm: norm of the towers; BN and SyncBN have one layer per level.
            deformable: whether the last convolutions of the class and box towers are deformable.
            use_scale: learn a factor of the box distances for each level.
            prior_prob: initial foreground probability.
        """
        super().__init__()
        self.strides = list(strides)
        levels = len(self.strides)
        self.shared_tower = ConvTower(channels, num_shared_convs, norm, levels)
        self.class_tower = ConvTower(channels, num_class_convs, norm, levels, deformable)
        self.box_tower = ConvTower(channels, num_box_convs, norm, levels, deformable)
        self.class_logits = nn.Conv2d(channels, num_classes, 3, padding=1)
        self.box_distances = nn.Conv2d(channels, 4, 3, padding=1)
        self.quality_logits = nn.Conv2d(channels, 1, 3, padding=1)
        init_normal(self.class_logits, self.box_distances, self.quality_logits)
        nn.init.constant_(self.class_logits.bias, -math.log((1 - prior_prob) / prior_prob))
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(1)) for _ in range(levels)) if use_scale else None

    @classmethod
    def from_config(cls, cfg, input_shape: Sequence[ShapeSpec]):
        node = cfg.MODEL.FCOS
        classes_of = cfg.MODEL.ROI_HEADS if serves_roi_heads(cfg) else node
        channels = {shape.channels for shape in input_shape}
        if len(channels) != 1:
            raise ValueError(
                f"the maps of MODEL.FCOS.IN_FEATURES have {sorted(channels)} channels; all need the same number."
            )
        return {
            "channels": channels.pop(),
            "strides": node.FPN_STRIDES,
            "num_classes": classes_of.NUM_CLASSES,
            "num_shared_convs": node.NUM_SHARE_CONVS,
            "num_class_convs": node.NUM_CLS_CONVS,
            "num_box_convs": node.NUM_BOX_CONVS,
            "norm": node.NORM,
            "deformable": node.USE_DEFORMABLE,
            "use_scale": node.USE_SCALE,
            "prior_prob": node.PRIOR_PROB,
        }

    def forward(self, features: Sequence[torch.Tensor]) -> HeadOutputs:
        """features: one (N, C, h, w) map per level, finest first."""
        logits, distances, qualities, towers = [], [], [], []
        for level, x in enumerate(features):
            x = self.shared_tower(x, level)
            logits.append(self.class_logits(self.class_tower(x, level)))
            tower = self.box_tower(x, level)
            # One convolution for both outputs reads the tower once.
            boxes = F.conv2d(
                tower,
                torch.cat([self.box_distances.weight, self.quality_logits.weight]),
                torch.cat([self.box_distances.bias, self.quality_logits.bias]),
                padding=1,
            )
            distance = boxes[:, :4]
            distances.append(F.relu(distance if self.scales is None else distance * self.scales[level]))
            qualities.append(boxes[:, 4:])
            towers.append(tower)
        grid = LocationGrid(len(features[0]), [x.shape[-2:] for x in features], self.strides, features[0].device)
        return HeadOutputs(
            grid, flatten_levels(logits), flatten_levels(distances), flatten_levels(qualities)[:, 0], towers
        )
