"""
BlendMask as a mask head of any detector.

N images, D boxes (proposals in training, else detections), K bases (the paper's letter), A attention size, R mask
resolution, C channels.
"""

from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.config import configurable
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY
from torch import nn

from ...layers import ConvTower, init_normal, join_boxes
from ..image_mask_head import ImageMaskHead, box_pooler
from .basis_module import build_basis_module
from .blender import Blender


@ROI_MASK_HEAD_REGISTRY.register()
class BlendMaskHead(ImageMaskHead):
    """
    Mask head that blends the image's bases with the attention of each box (BlendMask, section 3.3). Class-agnostic.

    A tower of MODEL.BLEND_MASK_HEAD.ATTN_CONVS convolutions and a 3x3 convolution predict K attention maps from the
    box's features, pooled to A x A cells. The other keys are those of MODEL.BLENDMASK and MODEL.BASIS_MODULE.
    """

    @configurable
    def __init__(
        self,
        *,
        basis_module: nn.Module,
        blender: Blender,
        in_features: Sequence[str],
        pooler: Optional[ROIPooler],
        attention: Optional[nn.Module],
        tower: Optional[ConvTower] = None,
        **kwargs,
    ):
        """
        Args:
            basis_module: features -> bases (N, K, h, w).
            in_features: names of the feature maps that the attention reads.
            pooler: pools these maps to A x A cells; None for fcis.
            attention: (D, C, A, A) -> (D, K, A, A); None for fcis.
            tower: convolutions of the pooled features before ``attention``.
            kwargs: loss_weight and vis_period of Detectron2's BaseMaskRCNNHead.
        """
        super().__init__(**kwargs)
        self.basis_module = basis_module
        self.blender = blender
        self.in_features = list(in_features)
        self.pooler = pooler
        self.attention = attention
        self.tower = tower

    @classmethod
    def from_config(cls, cfg, input_shape):
        arguments = super().from_config(cfg, input_shape)
        blender = Blender(cfg)
        attention, pooler, tower = None, None, None
        if blender.num_attention_channels:
            channels = next(iter(input_shape.values())).channels
            attention = nn.Conv2d(channels, blender.num_bases, 3, padding=1)
            init_normal(attention)
            pooler = box_pooler(cfg, input_shape, blender.attention_size)
            num_convs = cfg.MODEL.BLEND_MASK_HEAD.ATTN_CONVS
            tower = ConvTower(channels, num_convs, "GN", 1) if num_convs else None
        return {
            **arguments,
            "basis_module": build_basis_module(cfg, input_shape),
            "blender": blender,
            "in_features": list(input_shape),
            "pooler": pooler,
            "attention": attention,
            "tower": tower,
            "loss_weight": cfg.MODEL.BLENDMASK.INSTANCE_LOSS_WEIGHT,
        }

    def mask_logits(self, features, boxes) -> torch.Tensor:
        """(D, 1, R, R); see `ImageMaskHead`."""
        attention = None
        if self.attention is not None:
            pooled = self.pooler([features[name] for name in self.in_features], boxes)
            attention = self.attention(pooled if self.tower is None else self.tower(pooled, 0)).flatten(1)
        return self.blender(self.basis_module(features), *join_boxes(boxes), attention).float()[:, None]
