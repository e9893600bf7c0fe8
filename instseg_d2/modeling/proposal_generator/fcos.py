"""
FCOS (Tian et al., arXiv 1904.01355, and its improved version): a box at every location, without anchors.

N images, M objects, D detections, K classes, C channels, X rows (see layers/locations.py), P selected rows.
"""

from collections.abc import Callable, Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.nn import sigmoid_focal_loss
from torch import nn
from torchvision.ops import clip_boxes_to_image

from ...layers import check_choice, conv_at_rows, flatten_levels, join_boxes
from ..backbone import check_in_features
from ..losses import LTRB_LOSSES, ltrb_iou_loss, ltrb_ious, mean_over_workers
from .fcos_head import FCOSHead, HeadOutputs
from .fcos_inference import DetectionLimits, detect
from .fcos_targets import Assignment, assign


@PROPOSAL_GENERATOR_REGISTRY.register()
class FCOS(nn.Module):
    """
    FCOS as a proposal generator, and as the detector inside methods that add their own top layers.

    `forward` is the interface of Detectron2's proposal generators. The methods call `outputs`, `match`, `losses`,
    `detect` and `top_features` instead.
    """

    @configurable
    def __init__(
        self,
        *,
        head: nn.Module,
        in_features: Sequence[str],
        size_bounds: Sequence[float],
        center_sample: bool = True,
        radius: float = 1.5,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        class_weight: float = 1.0,
        class_normalizer: str = "fg",
        box_loss: str = "giou",
        box_quality: str = "ctrness",
        limits_train: DetectionLimits = DetectionLimits(),  # noqa: B008 (frozen)
        limits_test: DetectionLimits = DetectionLimits(),  # noqa: B008
        yield_proposals: bool = False,
        yield_box_features: bool = False,
        inclusive: bool = False,
        hull_epsilon: float = 0.0,
        min_quality_sum: float = 1e-6,
    ):
        """
        Args:
            head: an `FCOSHead`.
            in_features: names of the backbone's feature maps, finest first.
            size_bounds: upper bound of max(l, t, r, b) for each level but the last, pixels.
            center_sample: whether positive locations are only those near the box centre, or all inside the box.
            radius: distance from the box centre for ``center_sample``, in strides.
            class_normalizer: "fg" (number of positives), "moving_fg" (its moving average) or "all" (all locations).
            box_loss: "giou", "iou" or "linear_iou".
            box_quality: "ctrness" or "iou".
            yield_proposals: return proposals in training too.
            yield_box_features: add ``box_features`` (D, C), the box tower at their locations, to the proposals.
            inclusive: ground-truth boxes include pixels x2 and y2 (see also `DetectionLimits`).
            hull_epsilon: see `ltrb_ious`.
            min_quality_sum: lower bound of the box loss's normalizer, the summed centerness averaged over workers.

        Raises:
            ValueError: unknown value, or the numbers of maps, strides and bounds do not fit.
        """
        super().__init__()
        check_choice("class_normalizer", class_normalizer, ("fg", "moving_fg", "all"))
        check_choice("box_loss", box_loss, LTRB_LOSSES)
        check_choice("box_quality", box_quality, ("ctrness", "iou"))
        self.head = head
        self.in_features = list(in_features)
        if not len(self.in_features) == len(head.strides) == len(size_bounds) + 1:
            raise ValueError(
                f"{len(self.in_features)} in_features need as many strides of the head and one size bound fewer; "
                f"got {len(head.strides)} and {len(size_bounds)}"
            )
        ends = [-1.0, *size_bounds, 1e8]
        ranges = torch.tensor(list(zip(ends[:-1], ends[1:])), dtype=torch.float32)
        self.register_buffer("size_ranges", ranges, persistent=False)
        self.center_sample = center_sample
        self.radius = radius
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.class_weight = class_weight
        self.class_normalizer = class_normalizer
        self.box_loss = box_loss
        self.box_quality = box_quality
        self.limits_train = limits_train
        self.limits_test = limits_test
        self.yield_proposals = yield_proposals
        self.yield_box_features = yield_box_features
        self.inclusive = inclusive
        self.hull_epsilon = hull_epsilon
        self.min_quality_sum = min_quality_sum
        if class_normalizer == "moving_fg":
            self.register_buffer("moving_num_positives", torch.tensor(100.0))

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        node = cfg.MODEL.FCOS
        check_in_features("MODEL.FCOS.IN_FEATURES", node.IN_FEATURES, input_shape)
        limits = {
            mode: DetectionLimits(
                score_threshold=node[f"INFERENCE_TH_{mode}"],
                threshold_with_quality=node.THRESH_WITH_CTR,
                pre_nms_topk=node[f"PRE_NMS_TOPK_{mode}"],
                post_nms_topk=node[f"POST_NMS_TOPK_{mode}"],
                nms_threshold=node.NMS_TH,
            )
            for mode in ("TRAIN", "TEST")
        }
        return {
            "head": FCOSHead(cfg, [input_shape[name] for name in node.IN_FEATURES]),
            "in_features": node.IN_FEATURES,
            "size_bounds": node.SIZES_OF_INTEREST,
            "center_sample": node.CENTER_SAMPLE,
            "radius": node.POS_RADIUS,
            "focal_alpha": node.LOSS_ALPHA,
            "focal_gamma": node.LOSS_GAMMA,
            "class_weight": node.LOSS_WEIGHT_CLS,
            "class_normalizer": node.LOSS_NORMALIZER_CLS,
            "box_loss": node.LOC_LOSS_TYPE,
            "box_quality": node.BOX_QUALITY,
            "limits_train": limits["TRAIN"],
            "limits_test": limits["TEST"],
            # Detectron2's ROI heads always train on proposals; FCOSDetector has no ROI heads.
            "yield_proposals": node.YIELD_PROPOSAL or cfg.MODEL.META_ARCHITECTURE != "FCOSDetector",
            "yield_box_features": node.YIELD_BOX_FEATURES,
        }

    def outputs(self, features: dict[str, torch.Tensor]) -> HeadOutputs:
        """Run the head on the backbone's feature maps."""
        return self.head([features[name] for name in self.in_features])

    @torch.no_grad()
    def match(
        self, outputs: HeadOutputs, gt_instances: Sequence[Instances], allowed: Optional[Callable] = None
    ) -> Assignment:
        """Assign locations to objects; see `fcos_targets.assign` for ``allowed``."""
        boxes, images = join_boxes([x.gt_boxes for x in gt_instances])
        return assign(
            outputs.grid,
            boxes.float(),
            images,
            self.size_ranges,
            center_sample=self.center_sample,
            radius=self.radius,
            allowed=allowed,
            inclusive=self.inclusive,
        )

    def losses(self, outputs: HeadOutputs, positives: Assignment, gt_instances: Sequence[Instances]):
        """
        The losses of FCOS (eq. 2).

        Returns:
            losses: loss_fcos_cls, loss_fcos_loc and loss_fcos_ctr (or loss_fcos_iou), scalars.
            weights: (P,) weights of the positive locations in the box loss, also for the losses of top layers.
            normalizer: scalar that divides the weighted sums.
        """
        rows = positives.rows
        class_logits = outputs.class_logits.float()
        classes = torch.cat([x.gt_classes for x in gt_instances])[positives.objects]
        targets = torch.zeros_like(class_logits)
        targets[rows, classes] = 1.0
        class_sum = sigmoid_focal_loss(class_logits, targets, self.focal_alpha, self.focal_gamma, reduction="sum")

        ltrb = outputs.ltrb[rows].float()
        quality_logits = outputs.quality_logits[rows].float()
        by_centerness = self.box_quality == "ctrness"
        quality = positives.centerness if by_centerness else ltrb_ious(ltrb.detach(), positives.ltrb)[0]
        counts = torch.stack([quality.new_full((), len(rows)), quality.sum()])
        num_positives, quality_sum = mean_over_workers(counts)
        num_positives = num_positives.clamp(min=1)
        weights = quality if by_centerness else torch.ones_like(quality)
        normalizer = quality_sum.clamp(min=self.min_quality_sum) if by_centerness else num_positives

        box_sum = ltrb_iou_loss(ltrb, positives.ltrb, self.box_loss, weights, self.hull_epsilon)
        quality_sum = F.binary_cross_entropy_with_logits(quality_logits, quality, reduction="sum")
        losses = {
            "loss_fcos_cls": self.class_weight * class_sum / self._class_normalizer(num_positives, class_logits),
            "loss_fcos_loc": box_sum / normalizer,
            f"loss_fcos_{'ctr' if by_centerness else 'iou'}": quality_sum / num_positives,
        }
        return losses, weights, normalizer

    def _class_normalizer(self, num_positives, class_logits) -> torch.Tensor:
        if self.class_normalizer == "all":
            return mean_over_workers(num_positives.new_full((), len(class_logits)))
        if self.class_normalizer == "moving_fg":
            self.moving_num_positives.lerp_(num_positives, 0.1)
            return self.moving_num_positives.clone()
        return num_positives

    @torch.no_grad()
    def detect(self, outputs: HeadOutputs, image_sizes: Sequence[tuple]) -> list[Instances]:
        """
        Detect boxes.

        Returns:
            one Instances per image with pred_boxes (D, input pixels), scores (D,), pred_classes (D,) and rows (D,),
            best first. `DetectionLimits` decides whether boxes are clipped and scores are square roots.
        """
        limits = self.limits_train if self.training else self.limits_test
        return detect(outputs, image_sizes, limits)

    def top_features(self, outputs: HeadOutputs, rows: torch.Tensor, top_layer: nn.Conv2d) -> torch.Tensor:
        """Apply a 3x3 convolution to the box tower at selected rows (P,) only: (P, top_layer.out_channels)."""
        return conv_at_rows(flatten_levels(outputs.box_tower), outputs.grid, rows, top_layer.weight, top_layer.bias)

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        gt_instances: Optional[Sequence[Instances]] = None,
    ):
        """
        The interface of Detectron2's proposal generators.

        Returns:
            proposals: one Instances per image with proposal_boxes (D, clipped), objectness_logits (D,) and, with
                ``yield_box_features``, box_features (D, C); in training only with ``yield_proposals``, else None.
            losses: empty in inference.
        """
        outputs = self.outputs(features)
        losses = {}
        if self.training:
            losses = self.losses(outputs, self.match(outputs, gt_instances), gt_instances)[0]
            if not self.yield_proposals:
                return None, losses
        proposals = []
        tower = flatten_levels(outputs.box_tower).detach() if self.yield_box_features else None
        for found in self.detect(outputs, images.image_sizes):
            proposal = Instances(found.image_size)
            proposal.proposal_boxes = Boxes(clip_boxes_to_image(found.pred_boxes.tensor, found.image_size))
            proposal.objectness_logits = torch.logit(found.scores, eps=1e-6)
            if tower is not None:
                proposal.box_features = tower[found.rows]
            proposals.append(proposal)
        return proposals, losses
