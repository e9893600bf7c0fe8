"""
Base class of mask heads that read whole feature maps instead of pooled features.

N images, D boxes (proposals in training, else detections), C channels, K classes (1 if class-agnostic), R mask
resolution, h x w cells of a map.
"""

from collections.abc import Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import BaseMaskRCNNHead
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Boxes, Instances

from ..layers import TraceablePooler


class ImageMaskHead(BaseMaskRCNNHead):
    """
    Base class of mask heads for Detectron2's GeneralizedRCNN. With MODEL.ROI_MASK_HEAD.POOLER_TYPE "",
    StandardROIHeads and CascadeROIHeads pass a mask head the feature maps of MODEL.ROI_HEADS.IN_FEATURES.

    Subclasses implement `mask_logits`. The loss is Mask R-CNN's (arXiv 1703.06870, section 3).
    """

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        if isinstance(input_shape, ShapeSpec):
            if not cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE:
                raise ValueError(
                    f"MODEL.ROI_HEADS.NAME is {cfg.MODEL.ROI_HEADS.NAME}, which does not pass feature maps to a mask "
                    f"head; {cls.__name__} works in StandardROIHeads and CascadeROIHeads."
                )
            raise ValueError(
                f"MODEL.ROI_MASK_HEAD.POOLER_TYPE is {cfg.MODEL.ROI_MASK_HEAD.POOLER_TYPE!r}; {cls.__name__} needs "
                '"", because it reads whole feature maps.'
            )
        return super().from_config(cfg, input_shape)

    def mask_logits(self, features: dict[str, torch.Tensor], boxes: Sequence[Boxes]) -> torch.Tensor:
        """
        Args:
            features: name -> (N, C, h, w).
            boxes: N Boxes in input pixels.

        Returns:
            (D, K, R, R) float32 logits, image after image.
        """
        raise NotImplementedError

    def forward(self, features: dict[str, torch.Tensor], instances: list[Instances]):
        """
        Args:
            features: name -> (N, C, h, w).
            instances: N; foreground proposals in training, else detections with pred_boxes and pred_classes.

        Returns:
            {"loss_mask": scalar} in training, else the instances with pred_masks (D, 1, R, R), probabilities.
        """
        logits = self.mask_logits(features, self.boxes_of(instances))
        if self.training:
            return {"loss_mask": self.loss_weight * mask_rcnn_loss(logits, instances, self.vis_period)}
        mask_rcnn_inference(logits, instances)
        return instances

    def boxes_of(self, instances: Sequence[Instances]) -> list[Boxes]:
        """The boxes to predict masks for: those of proposals in training, else those of detections."""
        return [x.proposal_boxes if self.training else x.pred_boxes for x in instances]


def add_masks(instances: list[Instances], masks: torch.Tensor) -> list[Instances]:
    """Split the masks (D, 1, R, R) of all images and set them as pred_masks."""
    for x, part in zip(instances, masks.split([len(x) for x in instances])):
        x.pred_masks = part
    return instances


def rescale_threshold(masks: torch.Tensor, threshold: float) -> torch.Tensor:
    """Scale masks so that ``threshold`` becomes 0.5, Detectron2's threshold for pasted masks."""
    return masks * (0.5 / threshold)


def box_pooler(cfg, input_shape: dict[str, ShapeSpec], size: int) -> TraceablePooler:
    """RoIAlign to size x size cells, with MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO."""
    scales = [1.0 / shape.stride for shape in input_shape.values()]
    return TraceablePooler(size, scales, cfg.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO, "ROIAlignV2")
