"""
ISTR's mask codes as a mask head of any detector.

N images, D boxes (proposals in training, else detections), C channels, L length of a mask code, S side of an encoded
mask.
"""

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY, BaseMaskRCNNHead
from detectron2.structures import Instances

from ..ground_truth import box_masks
from ..image_mask_head import add_masks, rescale_threshold
from .embedding import MaskEmbedding, build_mask_embedding, mask_dice_losses, require_fitted
from .head import MASK_ROI_SIZE, RoIMaskBranch
from .inference import paste_threshold


@ROI_MASK_HEAD_REGISTRY.register()
class MaskEmbeddingHead(BaseMaskRCNNHead):
    """
    Mask head that predicts and decodes a mask code: the mask branch and losses of version 2 (IEEE TIP 33) on the pooled
    features of Detectron2's GeneralizedRCNN. Class-agnostic.

    MODEL.ISTR selects the mask embedding. Needs MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION 28.
    """

    @configurable
    def __init__(
        self,
        *,
        branch: RoIMaskBranch,
        mask_embedding: MaskEmbedding,
        code_weight: float = 1.0,
        dice_weight: float = 5.0,
        mask_threshold: float = 0.45,
        **kwargs,
    ):
        """
        Args:
            code_weight, dice_weight: weights of the codes' smooth L1 loss and of the decoded masks' dice loss.
            mask_threshold: minimum value of a mask's pixels.
            kwargs: loss_weight and vis_period of Detectron2's BaseMaskRCNNHead.
        """
        super().__init__(**kwargs)
        self.branch = branch
        self.mask_embedding = mask_embedding
        self.code_weight = code_weight
        self.dice_weight = dice_weight
        self.mask_threshold = mask_threshold

    @classmethod
    def from_config(cls, cfg, input_shape):
        size = cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION
        if not isinstance(input_shape, ShapeSpec) or size != MASK_ROI_SIZE:
            raise ValueError(
                f"MaskEmbeddingHead reads pooled features: set MODEL.ROI_MASK_HEAD.POOLER_TYPE ROIAlignV2 and "
                f"POOLER_RESOLUTION {MASK_ROI_SIZE}."
            )
        if cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads":
            raise ValueError(
                "MODEL.ROI_HEADS.NAME is Res5ROIHeads, which pools features to another size; MaskEmbeddingHead works "
                "in StandardROIHeads and CascadeROIHeads."
            )
        embedding = build_mask_embedding(cfg)
        return {
            **super().from_config(cfg, input_shape),
            "branch": RoIMaskBranch(input_shape.channels, embedding.dim),
            "mask_embedding": embedding,
            "mask_threshold": paste_threshold(cfg),
            "code_weight": cfg.MODEL.ISTR.FEAT_WEIGHT,
            "dice_weight": 5.0 if cfg.MODEL.ISTR.MASK_WEIGHT is None else cfg.MODEL.ISTR.MASK_WEIGHT,
        }

    def losses(self, codes: torch.Tensor, instances: list[Instances]) -> torch.Tensor:
        """
        Args:
            codes: (D, L) of the foreground proposals.
            instances: N, with proposal_boxes and gt_masks.

        Returns:
            smooth L1 loss of the codes plus dice loss of the decoded masks, weighted, averaged over the proposals.
        """
        with torch.autocast(codes.device.type, enabled=False):
            codes = codes.float()
            crops = box_masks(instances, self.mask_embedding.size).float()
            error = F.smooth_l1_loss(codes, self.mask_embedding.encode(crops), reduction="none").mean(1)
            dice = mask_dice_losses(self.mask_embedding.decode(codes), crops)
            return (self.code_weight * error + self.dice_weight * dice).sum() / max(len(codes), 1)

    def forward(self, features: torch.Tensor, instances: list[Instances]):
        """
        Args:
            features: (D, C, 28, 28).
            instances: N; foreground proposals in training, else detections with pred_boxes and pred_classes.

        Returns:
            {"loss_mask": scalar} in training, else the instances with pred_masks (D, 1, S, S).
        """
        codes = self.branch(None, features)[0]
        if self.training:
            require_fitted(self.mask_embedding)
            return {"loss_mask": self.loss_weight * self.losses(codes, instances)}
        return add_masks(instances, rescale_threshold(self.mask_embedding.decode(codes)[:, None], self.mask_threshold))
