"""ISTR inside Detectron2's GeneralizedRCNN. N images, Q queries per image, D detections, S side of a mask."""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import nn

from ..image_mask_head import rescale_threshold
from ..proposal_free import ProposalFreeROIHeads
from .criterion import ISTRCriterion
from .embedding import MaskEmbedding, build_mask_embedding, require_fitted
from .exportable import ExportableISTRHeads
from .inference import Detections, detect, initial_queries, paste_threshold, to_instances, whole_image_boxes
from .recipe import heads_rules
from .refinement import RefinementHeads


@ROI_HEADS_REGISTRY.register()
class ISTRHeads(ProposalFreeROIHeads, RefinementHeads):
    """
    ISTR's refinement heads with queries, mask embedding and losses. Proposals are ignored.

    The keys are those of MODEL.ISTR, except for MODEL.ROI_HEADS.NUM_CLASSES. A
    MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO of 0, Detectron2's default, is replaced by 2, ISTR's.
    """

    exportable = ExportableISTRHeads
    recipe_rules = staticmethod(heads_rules)

    @configurable
    def __init__(
        self,
        *,
        mask_embedding: MaskEmbedding,
        criterion: ISTRCriterion,
        num_queries: int = 300,
        channels: int = 256,
        max_detections: int = 100,
        mask_threshold: float = 0.5,
        **kwargs,
    ):
        """
        Args:
            num_queries: Q.
            channels: channels of a query.
            max_detections: number of (query, class) pairs kept per image.
            mask_threshold: minimum value of a mask's pixels.
            kwargs: see `RefinementHeads`.
        """
        super().__init__(**kwargs)
        self.mask_embedding = mask_embedding
        self.criterion = criterion
        self.max_detections = max_detections
        self.mask_threshold = mask_threshold
        self.query_embedding = nn.Embedding(num_queries, channels)
        self.initial_boxes = whole_image_boxes(num_queries)

    @classmethod
    def from_config(cls, cfg, input_shape):
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.ISTR.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO or 2
        embedding = build_mask_embedding(cfg)
        return {
            **super().from_config(cfg, input_shape, embedding),
            "mask_embedding": embedding,
            "criterion": ISTRCriterion.from_config(cfg),
            "num_queries": cfg.MODEL.ISTR.NUM_PROPOSALS,
            "channels": cfg.MODEL.ISTR.HIDDEN_DIM,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "mask_threshold": paste_threshold(cfg),
        }

    def _initial_state(self, images: ImageList, features):
        return initial_queries(self.maps(features), images.image_sizes, self.initial_boxes, self.query_embedding)

    def losses(self, images: ImageList, features: dict[str, torch.Tensor], targets: Sequence[Instances]) -> dict:
        """loss_ce, loss_bbox, loss_giou, loss_feat and loss_dice of each head."""
        require_fitted(self.mask_embedding)
        predictions = RefinementHeads.forward(self, features, *self._initial_state(images, features))
        return self.criterion(predictions, targets, self.mask_embedding)

    def detect(self, images: ImageList, features: dict[str, torch.Tensor]) -> Detections:
        """The best (query, class) pairs; ``images.image_sizes`` may also be a tensor (N, 2)."""
        return detect(self, features, *self._initial_state(images, features), self.mask_embedding, self.max_detections)

    @torch.no_grad()
    def infer(self, images: ImageList, features: dict[str, torch.Tensor]) -> list[Instances]:
        """Detections, best first, with pred_masks (D, 1, S, S) inside the unclipped boxes."""
        results = to_instances(self.detect(images, features), images.image_sizes)
        for x in results:
            x.pred_masks = rescale_threshold(x.pred_masks, self.mask_threshold)
        return results
