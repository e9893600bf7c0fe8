"""Classifies segments with Detectron2's box head on their tight boxes; the segments keep their masks."""

from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.modeling.roi_heads import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import ImageList, Instances


@ROI_HEADS_REGISTRY.register()
class SegmentROIHeads(StandardROIHeads):
    """
    StandardROIHeads without a mask head, for proposals that have masks already.

    The box regression is trained, as in MNC, but not applied: a segment's box stays tight around its mask.
    """

    @classmethod
    def _init_mask_head(cls, cfg, input_shape):
        return {}

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: Sequence[Instances],
        targets: Optional[Sequence[Instances]] = None,
    ):
        """
        Like Detectron2's. In inference, results get scores and pred_classes and keep the proposals' other fields.
        """
        if self.training:
            return super().forward(images, features, proposals, targets)
        boxes = [x.proposal_boxes for x in proposals]
        pooled = self.box_pooler([features[name] for name in self.box_in_features], boxes)
        predictor = self.box_predictor
        probabilities = predictor.predict_probs(predictor(self.box_head(pooled)), proposals)
        results, kept = fast_rcnn_inference(
            [x.tensor for x in boxes],
            probabilities,
            [x.image_size for x in proposals],
            predictor.test_score_thresh,
            predictor.test_nms_thresh,
            predictor.test_topk_per_image,
        )
        for result, proposal, index in zip(results, proposals, kept):
            for name, value in proposal.get_fields().items():
                if not result.has(name) or name == "pred_boxes":
                    result.set(name, value[index])
        return results, {}
