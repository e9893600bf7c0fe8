"""
The ISTR meta-architecture.

N images, Q queries per image, C channels, D detections per image, S side of a decoded mask.
"""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.structures import ImageList
from torch import nn

from ...layers import init_normal, untouched_statistics
from ..auxiliary import auxiliary_parts
from ..meta_arch import InstanceSegmenter
from ..postprocessing import filter_detections
from .criterion import ISTRCriterion
from .embedding import build_mask_embedding
from .explain import explain_image
from .inference import (
    Detections,
    detect,
    initial_queries,
    paste_threshold,
    tiled_boxes,
    to_instances,
    whole_image_boxes,
)
from .pilots import make_pilots
from .refinement import RefinementHeads


@META_ARCH_REGISTRY.register()
class ISTR(InstanceSegmenter):
    """
    Refines learned queries and boxes into classes, boxes and mask codes, without NMS (ISTR, figure 2; arXiv
    2105.00637).
    """

    @configurable
    def __init__(
        self,
        *,
        roi_heads: RefinementHeads,
        mask_embedding: nn.Module,
        criterion: ISTRCriterion,
        num_queries: int = 300,
        channels: int = 256,
        max_detections: int = 100,
        start: str = "whole",
        pilots: int = 0,
        **kwargs,
    ):
        """
        Args:
            mask_embedding: a `MaskEmbedding`.
            num_queries: Q.
            channels: C.
            max_detections: number of (query, class) pairs kept per image.
            start: "whole": each query's box starts as the whole image, and the heads move it by random amounts (the
                authors' start). "tiles": the boxes start on grids, and the heads hardly move them.
            pilots: number of pilots (`make_pilots`) for each object in training.
            kwargs: see `InstanceSegmenter`.
        """
        super().__init__(**kwargs)
        self.pilots = pilots
        self.roi_heads = roi_heads
        self.mask_embedding = mask_embedding
        self.criterion = criterion
        self.max_detections = max_detections
        self.query_embedding = nn.Embedding(num_queries, channels)
        self.initial_boxes = (tiled_boxes if start == "tiles" else whole_image_boxes)(num_queries)
        for head in self.roi_heads.heads if start == "tiles" else ():
            init_normal(head.box_deltas, std=0.001)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.ISTR
        backbone = build_backbone(cfg)
        embedding = build_mask_embedding(cfg)
        return {
            "backbone": backbone,
            "roi_heads": RefinementHeads(cfg, backbone.output_shape(), embedding),
            "mask_embedding": embedding,
            "criterion": ISTRCriterion.from_config(cfg),
            "num_queries": node.NUM_PROPOSALS,
            "channels": node.HIDDEN_DIM,
            "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
            "start": node.START,
            "pilots": node.PILOTS,
            "mask_threshold": paste_threshold(cfg),
            "training_only": auxiliary_parts(
                cfg, {name: backbone.output_shape()[name] for name in cfg.MODEL.ROI_HEADS.IN_FEATURES}, node.NUM_CLASSES
            ),
            **cls.shared_arguments(cfg),
        }

    @property
    def size_divisibility(self) -> int:
        """32, the stride of the authors' coarsest map."""
        return 32

    def initial_state(self, images: ImageList):
        """The pyramid (name -> (N, C, h_l, w_l)), and the boxes and queries of `initial_queries`."""
        features = self.backbone(images.tensor)
        maps = self.roi_heads.maps(features)
        return features, *initial_queries(maps, images.image_sizes, self.initial_boxes, self.query_embedding)

    def losses(self, images: ImageList, batched_inputs: Sequence[dict]) -> dict:
        """
        loss_ce, loss_bbox, loss_giou, loss_feat and loss_dice of each head, with pilots also as loss_pilot_ce, ..., and
        those of what only training has.
        """
        gt_instances = self.gt_instances(batched_inputs)
        features, boxes, queries = self.initial_state(images)
        predictions, pilots = self.roi_heads(features, boxes, queries), None
        if self.pilots:
            started = make_pilots(gt_instances, self.pilots)
            with untouched_statistics(self.roi_heads):  # inference has no pilots
                found = self.roi_heads(features, started.boxes, started.queries(queries), started.groups)
            pilots = started, found
        losses = self.criterion(predictions, gt_instances, self.mask_embedding, pilots)
        for part in self.training_only.values():
            losses.update(part(features, gt_instances))
        return losses

    def _detect(self, images: ImageList) -> Detections:
        return detect(self.roi_heads, *self.initial_state(images), self.mask_embedding, self.max_detections)

    @torch.no_grad()
    def infer(self, images: ImageList) -> list[dict]:
        """Detections, best first, with pred_masks (D, 1, S, S), probabilities inside the unclipped boxes."""
        return [{"instances": x} for x in to_instances(self._detect(images), images.image_sizes)]

    @torch.no_grad()
    def explain(self, batched_inputs: Sequence[dict], max_instances: int = 4) -> list[list]:
        """For each image, (title, RGB picture) pairs: the best queries' boxes and masks after each head."""
        panels = []
        for sample in batched_inputs:
            images = self.preprocess([sample])
            found = self._detect(images)
            (detections,) = to_instances(found, images.image_sizes)
            detections.queries = found.queries[0]
            detections = filter_detections(detections)
            best = list(dict.fromkeys(detections.queries.tolist()))  # a query may have several classes
            if not best:
                panels.append([])
                continue
            chosen = torch.tensor([best[:max_instances]], device=self.device)
            tags = [f"{float(detections.scores[detections.queries == number].max()):.0%}" for number in chosen[0]]
            steps = [[x[0] for x in found.decode_masks(stage, chosen)] for stage in found.stages]
            panels.append(explain_image(self.rgb_image(sample), steps, tags, self.mask_threshold))
        return panels
