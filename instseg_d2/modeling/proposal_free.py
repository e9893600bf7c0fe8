"""Base of ROI heads that find objects without proposals. N images, C channels, h x w cells of a map."""

from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.structures import ImageList, Instances

from .ground_truth import ensure_masks
from .postprocessing import filter_detections


class ProposalFreeROIHeads:
    """
    Detectron2's contract of ROI heads for modules with ``losses(images, features, targets)`` and
    ``infer(images, features)``. The proposals of GeneralizedRCNN are ignored. It is a module's first base.
    """

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: Sequence[Instances],
        targets: Optional[Sequence[Instances]] = None,
    ):
        """
        Args:
            features: name -> (N, C, h, w).
            proposals: handed back in training.
            targets: of each image, in training.

        Returns:
            in training the proposals and a dict of scalar losses; else N Instances and {}.
        """
        if not self.training:
            return [filter_detections(x) for x in self.infer(images, features)], {}
        return proposals, self.losses(images, features, ensure_masks(targets, self))

    def forward_with_given_boxes(self, features: dict[str, torch.Tensor], instances: Sequence[Instances]):
        """
        Raises:
            ValueError: always; Detectron2's test-time augmentation asks for masks in boxes of other images.
        """
        raise ValueError(
            f"{type(self).__name__} finds masks by itself, not in given boxes: set TEST.AUG.ENABLED False."
        )
