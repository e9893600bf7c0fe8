"""A proposal generator for ROI heads that need no proposals. N images."""

from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn


@PROPOSAL_GENERATOR_REGISTRY.register()
class NoProposals(nn.Module):
    """Returns no proposals and no losses, for ROI heads in GeneralizedRCNN that need no proposals."""

    def __init__(self, cfg=None, input_shape=None):
        """The arguments are those of every proposal generator; they are not used."""
        super().__init__()

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        gt_instances: Optional[Sequence[Instances]] = None,
    ):
        """N Instances with empty proposal_boxes and objectness_logits, and no losses."""
        none = images.tensor.new_zeros((0, 4))
        return [
            Instances(size, proposal_boxes=Boxes(none), objectness_logits=none[:, 0]) for size in images.image_sizes
        ], {}
