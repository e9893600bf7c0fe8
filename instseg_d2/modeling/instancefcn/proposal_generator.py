"""
The proposal generator of InstanceFCN: segments at one scale.

N images, D segments, k grid, m mask size, h x w cells of the feature map.
"""

from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import ImageList, Instances
from torch import nn

from ... import ops
from .criterion import window_losses
from .head import InstanceFCNHead
from .inference import ProposalLimits, as_proposals, best_segments, decode
from .targets import WindowRules, cell_masks, label_windows, mask_targets, sample_windows
from .windows import window_corners


@PROPOSAL_GENERATOR_REGISTRY.register()
class InstanceFCN(nn.Module):
    """
    Assembles segments from instance-sensitive score maps (InstanceFCN; Dai et al., arXiv 1603.08678, section 3).

    `forward` is the interface of Detectron2's proposal generators. The meta-architecture of the same name calls
    `outputs`, `losses` and, at several scales, `segments`.
    """

    @configurable
    def __init__(
        self,
        *,
        head: nn.Module,
        in_feature: str,
        stride: int,
        grid: int = 5,
        mask_size: int = 21,
        rules: WindowRules = WindowRules(),  # noqa: B008 (frozen)
        limits: ProposalLimits = ProposalLimits(),  # noqa: B008
    ):
        """
        Args:
            head: an `InstanceFCNHead`.
            in_feature: name of the backbone's feature map.
            stride: its stride, pixels.
            grid: k.
            mask_size: m, in cells.

        Raises:
            ValueError: ``grid`` is not from 1 to ``mask_size``.
        """
        super().__init__()
        if not 1 <= grid <= mask_size:
            raise ValueError(f"grid is {grid} and mask_size {mask_size}; the grid must be from 1 to mask_size")
        self.head = head
        self.in_feature = in_feature
        self.stride = stride
        self.grid = grid
        self.mask_size = mask_size
        self.rules = rules
        self.limits = limits

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        node = cfg.MODEL.INSTANCE_FCN
        if node.IN_FEATURE not in input_shape:
            raise ValueError(
                f"MODEL.INSTANCE_FCN.IN_FEATURE is {node.IN_FEATURE}; the backbone has {', '.join(input_shape)}."
            )
        shape = input_shape[node.IN_FEATURE]
        return {
            "head": InstanceFCNHead(in_channels=shape.channels, hidden_dim=node.HIDDEN_DIM, grid=node.GRID),
            "in_feature": node.IN_FEATURE,
            "stride": shape.stride,
            "grid": node.GRID,
            "mask_size": node.MASK_SIZE,
            "rules": WindowRules(
                canonical_size=node.CANONICAL_SIZE,
                positive_octaves=node.POSITIVE_OCTAVES,
                positive_shift=node.POSITIVE_SHIFT,
                negative_octaves=node.NEGATIVE_OCTAVES,
                negative_shift=node.NEGATIVE_SHIFT,
                windows_per_image=node.WINDOWS_PER_IMAGE,
                positive_fraction=node.POSITIVE_FRACTION,
                cell_target=node.CELL_TARGET,
            ),
            "limits": ProposalLimits(
                top_windows=node.TOP_WINDOWS,
                score=node.SCORE,
                nms_threshold=node.NMS_TH,
                max_proposals=node.MAX_PROPOSALS,
            ),
        }

    def outputs(self, features: dict[str, torch.Tensor]):
        """The backbone's feature maps -> score_maps (N, k * k, h, w) and objectness (N, h, w), both logits."""
        return self.head(features[self.in_feature])

    def losses(self, outputs, gt_instances: Sequence[Instances]) -> dict[str, torch.Tensor]:
        """loss_window_objectness and loss_window_mask, regardless of the objects' classes."""
        score_maps, objectness = outputs
        size = tuple(score_maps.shape[-2:])
        with torch.no_grad():
            labels, objects = zip(
                *(
                    label_windows(
                        x.gt_boxes.tensor.float(), size, x.image_size, self.stride, self.mask_size, self.rules
                    )
                    for x in gt_instances
                )
            )
            sampled = sample_windows(torch.stack(labels), torch.stack(objects), self.rules)
            masks = [cell_masks(x, size, self.stride, self.rules.cell_target) for x in gt_instances]
            targets, inside = mask_targets(masks, sampled, self.mask_size)
            top, left = window_corners(sampled.positives, size[1], self.mask_size)
            image = torch.arange(len(top), device=top.device)[:, None].expand_as(top)
            windows = torch.stack([image, top, left], dim=-1).flatten(0, 1)
        logits = ops.assemble_instances(score_maps, windows, self.mask_size, self.grid)
        return window_losses(objectness.flatten(1), logits.view(targets.shape), targets, inside, sampled)

    @torch.no_grad()
    def segments(self, outputs, image_sizes: Sequence[tuple]) -> list[Instances]:
        """All segments of one scale, in its pixels, before NMS; see `windows_to_segments`."""
        score_maps, objectness = outputs
        return decode(
            score_maps.detach(),
            objectness.detach(),
            image_sizes,
            stride=self.stride,
            mask_size=self.mask_size,
            grid=self.grid,
            limits=self.limits,
        )

    def proposals(self, outputs, image_sizes: Sequence[tuple]) -> list[Instances]:
        """The best segments of one scale as proposal_boxes and objectness_logits."""
        return [as_proposals(best_segments(x, self.limits)) for x in self.segments(outputs, image_sizes)]

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        gt_instances: Optional[Sequence[Instances]] = None,
    ):
        """
        The interface of Detectron2's proposal generators, at the scale of the images.

        Returns:
            proposals: one Instances per image with proposal_boxes (D, clipped) and objectness_logits (D,), best first.
            losses: empty in inference.
        """
        outputs = self.outputs(features)
        losses = self.losses(outputs, gt_instances) if self.training else {}
        return self.proposals(outputs, images.image_sizes), losses
