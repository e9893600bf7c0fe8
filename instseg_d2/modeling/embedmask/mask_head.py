"""
EmbedMask as a mask head of any detector.

N images, D boxes (proposals in training, else detections), E embedding dimensions, C channels, P x P cells of the
pooled features, R mask resolution.
"""

import math
from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.config import configurable
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROI_MASK_HEAD_REGISTRY
from torch import nn

from ... import ops
from ...config.embedmask import embedmask_value, mask_stride
from ...layers import ConvTower, crop_boxes, init_normal, join_boxes
from ...ops import traceable
from ..ground_truth import box_masks
from ..image_mask_head import ImageMaskHead, add_masks, box_pooler, rescale_threshold
from ..losses.lovasz import lovasz_hinge
from .criterion import probability_logits
from .head import MAX_LOG_MARGIN, PixelHead, add_position, box_margin_layer
from .versions import version_of


class BoxProposalHead(nn.Module):
    """Predicts a proposal embedding and a margin from the pooled features of a box (EmbedMask, eq. 3-5)."""

    def __init__(
        self,
        *,
        channels: int,
        size: int,
        embed_dim: int,
        margin: str,
        num_convs: int = 4,
        norm: str = "GN",
        prior_margin: float = 2.0,
        fixed: bool = False,
        divisor: float = 1.0,
        margin_divisor: float = 32.0,
        box_scale: float = 800.0,
    ):
        """
        Args:
            size: P.
            num_convs, norm: of the tower on the pooled features.
            margin: "box", "scalar" or "dimension", see `Version`.
            prior_margin: distance at which the initial probability is 0.5.
            fixed: the margin keeps its initial value.
            divisor, margin_divisor: divide the tower's output before the linear layers.
            box_scale: divides the distances from the box centre to the sides, pixels. Only for "box".
        """
        super().__init__()
        self.initial_margin = -math.log(0.5) / prior_margin**2
        self.input_scale = 3 / size  # outputs vary as much as those of a 3x3 convolution
        self.divisor = divisor
        self.margin_divisor = margin_divisor
        self.box_scale = box_scale
        self.tower = ConvTower(channels, num_convs, norm, 1)
        self.embedding = nn.Linear(channels * size * size, embed_dim)
        self.box_margin, self.margin = None, None
        layers = [self.embedding]
        if margin == "box" and not fixed:
            self.box_margin = box_margin_layer(self.initial_margin)
        elif not fixed:
            self.margin = nn.Linear(channels * size * size, embed_dim if margin == "dimension" else 1)
            layers.append(self.margin)
        init_normal(*layers)
        if self.margin is not None:
            nn.init.constant_(self.margin.bias, math.log(self.initial_margin))

    def forward(self, pooled: torch.Tensor, boxes: torch.Tensor, position_scale: Optional[torch.Tensor]):
        """
        Args:
            pooled: (D, C, P, P).
            boxes: (D, 4), pixels.
            position_scale: see `add_position`.

        Returns:
            embeddings (D, E) and margins (D, 1) or (D, E), float32.
        """
        x = self.tower(pooled, 0).flatten(1) * self.input_scale
        embeddings = self.embedding(x / self.divisor).float()
        embeddings = add_position(embeddings, (boxes[:, :2] + boxes[:, 2:]).float() / 2, position_scale)
        if self.box_margin is not None:
            half = (boxes[:, 2:] - boxes[:, :2]).float() / (2 * self.box_scale)
            log_margins = self.box_margin(torch.cat([half, half], dim=1))
        elif self.margin is not None:
            log_margins = self.margin(x / self.margin_divisor)
        else:
            return embeddings, embeddings.new_full((len(x), 1), self.initial_margin)
        return embeddings, log_margins.float().clamp(max=MAX_LOG_MARGIN).exp()


@ROI_MASK_HEAD_REGISTRY.register()
class EmbedMaskHead(ImageMaskHead):
    """
    Mask head in which a pixel of a box belongs to the object with probability exp(-margin * squared distance of the
    embeddings) (EmbedMask, eq. 5). Pixels are embedded once per image, a box by its pooled features. Class-agnostic.

    The loss is the Lovasz hinge (section 3.4) inside each box. The keys are those of MODEL.EMBED_MASK and
    MODEL.ROI_MASK_HEAD: NUM_CONV, POOLER_RESOLUTION (half of R, as in Mask R-CNN) and POOLER_SAMPLING_RATIO.
    """

    @configurable
    def __init__(
        self,
        *,
        pixel_head: PixelHead,
        proposal_head: BoxProposalHead,
        in_features: Sequence[str],
        pooler: ROIPooler,
        pixel_feature: str,
        stride: int,
        resolution: int = 28,
        sampling_ratio: int = 0,
        spatial: bool = True,
        min_probability: float = 1e-9,
        mask_threshold: float = 0.53,
        **kwargs,
    ):
        """
        Args:
            in_features: names of the feature maps that the pooler reads.
            pixel_feature: name of the feature map that the pixel head reads.
            stride: stride of the pixel embedding, pixels.
            sampling_ratio: of the RoIAlign that crops the pixel embedding.
            spatial: add the position to the first two embedding dimensions.
            min_probability: the loss clamps probabilities to at least this.
            mask_threshold: minimum probability of a mask's pixels.
            kwargs: loss_weight and vis_period of Detectron2's BaseMaskRCNNHead.
        """
        super().__init__(**kwargs)
        self.pixel_head = pixel_head
        self.proposal_head = proposal_head
        self.in_features = list(in_features)
        self.pooler = pooler
        self.pixel_feature = pixel_feature
        self.spatial_scale = 1.0 / stride
        self.resolution = resolution
        self.sampling_ratio = sampling_ratio
        self.position_scale = nn.Parameter(torch.ones(1)) if spatial else None
        self.min_probability = min_probability
        self.mask_threshold = mask_threshold

    @classmethod
    def from_config(cls, cfg, input_shape):
        arguments = super().from_config(cfg, input_shape)
        node, head, version = cfg.MODEL.EMBED_MASK, cfg.MODEL.ROI_MASK_HEAD, version_of(cfg)
        threshold, embed_dim = embedmask_value(cfg, "MASK_TH"), embedmask_value(cfg, "EMBED_DIM")
        pixel_feature = next((name for name, x in input_shape.items() if x.stride == node.FPN_STRIDES[0]), None)
        if pixel_feature is None:
            raise ValueError(
                f"MODEL.EMBED_MASK.FPN_STRIDES begins with {node.FPN_STRIDES[0]}; no map of "
                f"MODEL.ROI_HEADS.IN_FEATURES has that stride: {', '.join(input_shape)}."
            )
        channels = input_shape[pixel_feature].channels
        proposal_head = BoxProposalHead(
            channels=channels,
            size=head.POOLER_RESOLUTION,
            embed_dim=embed_dim,
            margin=version.margin,
            num_convs=head.NUM_CONV,
            norm=node.NORM,
            prior_margin=node.PRIOR_MARGIN,
            fixed=node.FIX_MARGIN,
            divisor=node.EMBED_REDUCE_FACTOR,
            margin_divisor=node.MARGIN_REDUCE_FACTOR,
            box_scale=node.BOX_TO_MARGIN_SCALE,
        )
        return {
            **arguments,
            "pixel_head": PixelHead(cfg, channels),
            "proposal_head": proposal_head,
            "in_features": list(input_shape),
            "pooler": box_pooler(cfg, input_shape, head.POOLER_RESOLUTION),
            "pixel_feature": pixel_feature,
            "stride": mask_stride(cfg),
            "resolution": 2 * head.POOLER_RESOLUTION,
            "sampling_ratio": head.POOLER_SAMPLING_RATIO,
            "spatial": version.spatial,
            "min_probability": version.min_probability,
            "mask_threshold": threshold,
            "loss_weight": node.LOSS_MASK_ALPHA,
        }

    def log_probabilities(self, features, boxes) -> torch.Tensor:
        """The mask log-probabilities inside each box: (D, R, R) float32."""
        pixels = self.pixel_head(features[self.pixel_feature], self.position_scale)
        pooled = self.pooler([features[name] for name in self.in_features], boxes)
        boxes, images = join_boxes(boxes)
        embeddings, margins = self.proposal_head(pooled, boxes, self.position_scale)
        size = self.resolution
        crops = crop_boxes(pixels, boxes, images, size, self.spatial_scale, sampling_ratio=self.sampling_ratio)
        if traceable.is_exporting():
            return traceable.mask_prob(crops, embeddings[:, None], margins[:, None])[:, 0]
        own = torch.arange(len(boxes), device=boxes.device)
        return ops.mask_prob(crops, embeddings, margins, None, own).view(-1, size, size)

    def forward(self, features, instances):
        """See `ImageMaskHead`."""
        log_probabilities = self.log_probabilities(features, self.boxes_of(instances))
        if self.training:
            return {"loss_mask": self.loss_weight * self._loss(log_probabilities, instances)}
        return add_masks(instances, rescale_threshold(log_probabilities.exp(), self.mask_threshold)[:, None])

    def _loss(self, log_probabilities: torch.Tensor, instances) -> torch.Tensor:
        """The Lovasz hinge, averaged over all boxes; 0 without boxes."""
        count = len(log_probabilities)
        labels = box_masks(instances, self.resolution)
        owners = torch.arange(count, device=labels.device).repeat_interleave(self.resolution**2)
        logits = probability_logits(log_probabilities.flatten(), self.min_probability)
        return lovasz_hinge(logits, labels.flatten(), owners, count).sum() / max(count, 1)
