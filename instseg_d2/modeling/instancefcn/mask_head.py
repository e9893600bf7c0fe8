"""
InstanceFCN's assembling module as a mask head of any detector.

N images, D boxes (proposals in training, else detections), K classes (1 if class-agnostic), k grid, R mask resolution.
"""

import torch
from detectron2.config import configurable
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY
from torch import nn

from ...layers import assemble_boxes, conv_stack, init_normal, join_boxes
from ..image_mask_head import ImageMaskHead


@ROI_MASK_HEAD_REGISTRY.register()
class AssembleMaskHead(ImageMaskHead):
    """
    Mask head that predicts k x k score maps per image and assembles a mask from them inside each box: InstanceFCN's
    assembling (arXiv 1603.08678, section 3.1) for boxes of any size, as in FCIS. A box only costs reading R x R cells.
    """

    @configurable
    def __init__(
        self,
        *,
        in_feature: str,
        in_channels: int,
        stride: int,
        num_classes: int = 1,
        grid: int = 5,
        resolution: int = 14,
        sampling_ratio: int = 0,
        num_convs: int = 4,
        conv_dim: int = 256,
        norm: str = "",
        **kwargs,
    ):
        """
        Args:
            in_feature, in_channels, stride: name, channels and stride (pixels) of the feature map.
            num_classes: K; 1 for class-agnostic masks.
            grid: k.
            resolution: R.
            sampling_ratio: see RoIAlign.
            num_convs, conv_dim, norm: of the 3x3 convolutions before the score maps.
            kwargs: loss_weight and vis_period of Detectron2's BaseMaskRCNNHead.
        """
        super().__init__(**kwargs)
        self.in_feature = in_feature
        self.grid = grid
        self.resolution = resolution
        self.spatial_scale = 1.0 / stride
        self.sampling_ratio = sampling_ratio
        self.tower = conv_stack(in_channels, conv_dim, num_convs, norm)
        self.score_maps = nn.Conv2d(conv_dim if num_convs else in_channels, grid * grid * num_classes, 1)
        init_normal(self.score_maps)

    @classmethod
    def from_config(cls, cfg, input_shape):
        arguments = super().from_config(cfg, input_shape)
        head, node = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.ASSEMBLE_MASK_HEAD
        if node.IN_FEATURE not in input_shape:
            raise ValueError(
                f"MODEL.ASSEMBLE_MASK_HEAD.IN_FEATURE is {node.IN_FEATURE!r}; it must be one of "
                f"MODEL.ROI_HEADS.IN_FEATURES: {', '.join(input_shape)}."
            )
        shape = input_shape[node.IN_FEATURE]
        return {
            **arguments,
            "in_feature": node.IN_FEATURE,
            "in_channels": shape.channels,
            "stride": shape.stride,
            "num_classes": 1 if head.CLS_AGNOSTIC_MASK else cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "grid": node.GRID,
            "resolution": head.POOLER_RESOLUTION,
            "sampling_ratio": head.POOLER_SAMPLING_RATIO,
            "num_convs": head.NUM_CONV,
            "conv_dim": head.CONV_DIM,
            "norm": head.NORM,
        }

    def mask_logits(self, features, boxes) -> torch.Tensor:
        """See `ImageMaskHead`."""
        return assemble_boxes(
            self.score_maps(self.tower(features[self.in_feature])),
            *join_boxes(boxes),
            self.grid,
            self.resolution,
            self.spatial_scale,
            sampling_ratio=self.sampling_ratio,
        )
