"""A proposal generator for ROI heads that need none. N images."""

from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn


@PROPOSAL_GENERATOR_REGISTRY.register()
class NoProposals(nn.Module):
    """Finds nothing and learns nothing: for ROI heads in GeneralizedRCNN that find objects by themselves."""

    def __init__(self, cfg=None, input_shape=None):
        """The arguments of a proposal generator, unused."""
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
