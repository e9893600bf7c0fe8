"""
Recurrent refinement of boxes and queries by ISTR's heads (section 3 of the paper).

N images, Q queries per image, T heads, C channels, K classes, L length of a mask code.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import nn

from ...config.istr import istr_version
from ...layers import PyramidPooler
from ..backbone import check_in_features
from .embedding import MaskEmbedding
from .head import (
    MASK_ROI_SIZE,
    DynamicAttention,
    MultiHeadRoIAttention,
    RefinementHead,
    RoIMaskBranch,
    VectorMaskBranch,
    init_heads,
)


class Stage(NamedTuple):
    """The result of one head: queries (N, Q, C), and boxes (N, Q, 4) x1, y1, x2, y2 in input pixels, unclamped."""

    head: RefinementHead
    queries: torch.Tensor
    boxes: torch.Tensor


class Predictions(NamedTuple):
    """
    The predictions of the supervised heads.

    Attributes:
        class_logits: (T, N, Q, K).
        boxes: (T, N, Q, 4).
        codes: (T, N, Q, L).
        decoder_features: T tensors (N * Q, 32, 28, 28) for a decoder that reads RoI features, else None.
    """

    class_logits: torch.Tensor
    boxes: torch.Tensor
    codes: torch.Tensor
    decoder_features: Optional[list[torch.Tensor]]

    def float(self) -> "Predictions":
        """In float32."""
        features = self.decoder_features
        return Predictions(*(x.float() for x in self[:3]), None if features is None else [x.float() for x in features])


class RefinementHeads(nn.Module):
    """The refinement heads and their shared poolers."""

    checkpointed_methods = ("advance", "mask_codes")

    @configurable
    def __init__(
        self,
        *,
        heads: Sequence[RefinementHead],
        in_features: Sequence[str],
        pooler: PyramidPooler,
        mask_pooler: Optional[PyramidPooler] = None,
        averaged_heads: int = 1,
        deep_supervision: bool = True,
    ):
        """
        Args:
            in_features: names of the pyramid's maps, finest first.
            pooler: pools the RoI features of the heads.
            mask_pooler: pools the RoI features of the mask branch (version 2).
            averaged_heads: number of last heads whose class logits are averaged in inference.
            deep_supervision: every head has losses, and boxes are detached between heads. If False, only the last head
                has losses and their gradient reaches the boxes of all heads; the unused class and mask branches of the
                other heads are frozen.
        """
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.in_features = list(in_features)
        self.pooler = pooler
        self.mask_pooler = mask_pooler
        self.deep_supervision = deep_supervision
        self.averaged_heads = min(averaged_heads, len(self.heads)) if deep_supervision else 1
        self.box_transform = Box2BoxTransform((2.0, 2.0, 1.0, 1.0), math.log(100000.0 / 16))
        if not deep_supervision:
            for head in self.heads[:-1]:
                for branch in (head.class_branch, head.class_logits, head.mask_branch):
                    branch.requires_grad_(False)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec], embedding: MaskEmbedding):
        node = cfg.MODEL.ISTR
        names = cfg.MODEL.ROI_HEADS.IN_FEATURES
        check_in_features("MODEL.ROI_HEADS.IN_FEATURES", names, input_shape)
        if {input_shape[name].channels for name in names} != {node.HIDDEN_DIM}:
            raise ValueError(
                f"MODEL.ISTR.HIDDEN_DIM is {node.HIDDEN_DIM}; it must be the number of channels of "
                "MODEL.ROI_HEADS.IN_FEATURES."
            )
        box_head = cfg.MODEL.ROI_BOX_HEAD
        strides = [input_shape[name].stride for name in names]
        refined = istr_version(cfg) == 2
        heads = [cls._head(cfg, embedding) for _ in range(node.NUM_HEADS)]
        init_heads(heads, node.PRIOR_PROB)
        return {
            "heads": heads,
            "in_features": names,
            "pooler": PyramidPooler(strides, box_head.POOLER_RESOLUTION, box_head.POOLER_SAMPLING_RATIO),
            "mask_pooler": PyramidPooler(strides, MASK_ROI_SIZE, box_head.POOLER_SAMPLING_RATIO) if refined else None,
            "averaged_heads": 4 if refined else 1,
            "deep_supervision": node.DEEP_SUPERVISION,
        }

    @staticmethod
    def _head(cfg, embedding: MaskEmbedding) -> RefinementHead:
        node = cfg.MODEL.ISTR
        channels = node.HIDDEN_DIM
        if node.ROI_ATTENTION == "dynamic":
            roi_attention = DynamicAttention(channels, node.DIM_DYNAMIC, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION**2)
        else:
            roi_attention = MultiHeadRoIAttention(channels, node.NHEADS)
        if istr_version(cfg) == 1:
            mask_branch = VectorMaskBranch(channels, node.NUM_MASK, embedding.dim)
        else:
            mask_branch = RoIMaskBranch(channels, embedding.dim, embedding.roi_channels)
        return RefinementHead(
            roi_attention=roi_attention,
            mask_branch=mask_branch,
            channels=channels,
            num_heads=node.NHEADS,
            feedforward=node.DIM_FEEDFORWARD,
            dropout=node.DROPOUT,
            num_classes=node.NUM_CLASSES,
            num_class_layers=node.NUM_CLS,
            num_box_layers=node.NUM_REG,
        )

    def maps(self, features: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The pyramid's maps that the heads read, finest first."""
        return [features[name] for name in self.in_features]

    def refine(self, maps: Sequence[torch.Tensor], rows, boxes, queries, groups: int = 1) -> Iterator[Stage]:
        """
        Run the heads one after the other and yield their results.

        Args:
            maps: (N, C, h_l, w_l) of each level.
            rows: `PyramidPooler.rows` of ``maps``.
            boxes, queries: (N, Q, 4) and (N, Q, C), the input of the first head.
            groups: equal parts of an image's queries that do not see each other.
        """
        for head in self.heads:
            queries, boxes = self.advance(head, maps, rows, boxes, queries, groups)
            yield Stage(head, queries, boxes)
            if self.deep_supervision:
                boxes = boxes.detach()

    def advance(self, head: RefinementHead, maps, rows, boxes: torch.Tensor, queries: torch.Tensor, groups: int = 1):
        """Run a head: queries (N, Q, C) and boxes (N, Q, 4) -> the refined ones."""
        queries = head(queries, self.pooler(maps, boxes, rows), groups)
        deltas = head.deltas(queries)
        # Boxes stay float32, whatever the dtype of the deltas.
        boxes = self.box_transform.apply_deltas(deltas.flatten(0, 1), boxes.flatten(0, 1)).view(boxes.shape)
        return queries, boxes

    def mask_codes(self, head: RefinementHead, maps, rows, boxes: torch.Tensor, queries: torch.Tensor):
        """
        Run the mask branch of a head.

        Args:
            boxes, queries: (N, q, 4) and (N, q, C), results of the head.

        Returns:
            codes (N, q, L), and the RoI features (N * q, 32, 28, 28) for the decoder, or None.
        """
        crops = None
        if self.mask_pooler is not None:
            size = self.mask_pooler.resolution
            crops = self.mask_pooler(maps, boxes, rows).unflatten(1, (size, size)).permute(0, 3, 1, 2)
        codes, feature = head.mask_branch(queries.flatten(0, 1), crops)
        return codes.view(*queries.shape[:2], -1), feature

    def forward(self, features: dict[str, torch.Tensor], boxes, queries, groups: int = 1) -> Predictions:
        """
        Args:
            features: name -> (N, C, h_l, w_l).
            boxes, queries, groups: see `refine`.

        Returns:
            the predictions of all heads, or of the last one without deep supervision.
        """
        maps = self.maps(features)
        rows = self.pooler.rows(maps)
        stages = list(self.refine(maps, rows, boxes, queries, groups))
        stages = stages if self.deep_supervision else stages[-1:]
        masks = [self.mask_codes(stage.head, maps, rows, stage.boxes, stage.queries) for stage in stages]
        return Predictions(
            torch.stack([stage.head.classify(stage.queries) for stage in stages]),
            torch.stack([stage.boxes for stage in stages]),
            torch.stack([codes for codes, _ in masks]),
            None if masks[0][1] is None else [feature for _, feature in masks],
        )
