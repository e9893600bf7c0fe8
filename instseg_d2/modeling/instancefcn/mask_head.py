"""
The assembling module inside the boxes of any detector. N images, M boxes, C classes (1 when class-agnostic), k grid,
R mask resolution, feature map of H x W cells.
"""

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY, BaseMaskRCNNHead
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Instances
from torch import nn

from ...config import ConfigError
from ...layers import assemble_boxes, get_norm


@ROI_MASK_HEAD_REGISTRY.register()
class AssembleMaskHead(BaseMaskRCNNHead):
    """
    Mask head that predicts k x k score maps once for the image and assembles them inside each box: InstanceFCN's
    assembling (arXiv 1603.08678, section 3.1) for boxes of any size, as FCIS merges its maps. Nothing is computed for
    a box but the reading of R x R cells.

    Works by name on configs of Detectron2's GeneralizedRCNN, with MODEL.ROI_MASK_HEAD.POOLER_TYPE "" so that it gets
    the features of the image instead of pooled ones.
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
            in_feature, in_channels, stride: name, channels and stride in pixels of the feature map.
            num_classes: C; 1 for class-agnostic masks.
            grid: k.
            resolution: R.
            sampling_ratio: of RoIAlign.
            num_convs, conv_dim, norm: 3x3 convolutions before the score maps.
            kwargs: loss_weight and vis_period of Detectron2's BaseMaskRCNNHead.
        """
        super().__init__(**kwargs)
        self.in_feature = in_feature
        self.grid = grid
        self.resolution = resolution
        self.spatial_scale = 1.0 / stride
        self.sampling_ratio = sampling_ratio
        layers = []
        for _ in range(num_convs):
            layer_norm = get_norm(norm, conv_dim)
            conv = nn.Conv2d(in_channels, conv_dim, 3, padding=1, bias=layer_norm is None)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            layers += [conv, *([layer_norm] if layer_norm is not None else []), nn.ReLU(inplace=True)]
            in_channels = conv_dim
        self.tower = nn.Sequential(*layers)
        self.score_maps = nn.Conv2d(in_channels, grid * grid * num_classes, 1)
        nn.init.normal_(self.score_maps.weight, std=0.01)
        nn.init.zeros_(self.score_maps.bias)

    @classmethod
    def from_config(cls, cfg, input_shape):
        head, node = cfg.MODEL.ROI_MASK_HEAD, cfg.MODEL.ASSEMBLE_MASK_HEAD
        if isinstance(input_shape, ShapeSpec):
            raise ConfigError(
                f'MODEL.ROI_MASK_HEAD.POOLER_TYPE is {head.POOLER_TYPE!r}; AssembleMaskHead needs "": it reads the '
                "features of the whole image."
            )
        if node.IN_FEATURE not in input_shape:
            raise ConfigError(
                f"MODEL.ASSEMBLE_MASK_HEAD.IN_FEATURE is {node.IN_FEATURE!r}; it must be one of "
                f"MODEL.ROI_HEADS.IN_FEATURES: {', '.join(input_shape)}."
            )
        for key, value in (
            ("ASSEMBLE_MASK_HEAD.GRID", node.GRID),
            ("ROI_MASK_HEAD.POOLER_RESOLUTION", head.POOLER_RESOLUTION),
        ):
            if value < 1:
                raise ConfigError(f"MODEL.{key} is {value}; it must be at least 1.")
        shape = input_shape[node.IN_FEATURE]
        return {
            **super().from_config(cfg, input_shape),
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

    def mask_logits(self, features: dict, boxes: list) -> torch.Tensor:
        """
        Args:
            features: {name: (N, channels, H, W)}.
            boxes: N Boxes in input pixels.

        Returns:
            (M, C, R, R) logits, image after image.
        """
        score_maps = self.score_maps(self.tower(features[self.in_feature]))
        counts = torch.tensor([len(x) for x in boxes], device=score_maps.device)
        batch_index = torch.arange(len(boxes), device=score_maps.device).repeat_interleave(
            counts, output_size=sum(map(len, boxes))
        )
        return assemble_boxes(
            score_maps,
            torch.cat([x.tensor for x in boxes]),
            batch_index,
            self.grid,
            self.resolution,
            self.spatial_scale,
            sampling_ratio=self.sampling_ratio,
        )

    def forward(self, features: dict, instances: list[Instances]):
        """
        Args:
            features: {name: (N, channels, H, W)}.
            instances: of each image; foreground proposals in training, else with pred_boxes and pred_classes.

        Returns:
            In training {"loss_mask": scalar}; else the instances with pred_masks (D, 1, R, R), probabilities.
        """
        boxes = [x.proposal_boxes if self.training else x.pred_boxes for x in instances]
        logits = self.mask_logits(features, boxes)
        if self.training:
            return {"loss_mask": self.loss_weight * mask_rcnn_loss(logits, instances, self.vis_period)}
        mask_rcnn_inference(logits, instances)
        return instances
