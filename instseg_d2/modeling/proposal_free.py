"""Base class of ROI heads that need no proposals. N images, C channels, h x w cells of a map."""

from collections.abc import Callable, Sequence
from typing import Optional

import torch
from detectron2.structures import ImageList, Instances

from .ground_truth import ensure_masks
from .postprocessing import filter_detections


class ProposalFreeROIHeads:
    """
    Gives a module with ``losses(images, features, targets)`` and ``infer(images, features)`` the interface of
    Detectron2's ROI heads. Proposals are ignored. List it first among the base classes.

    Attributes:
        exportable: model -> the module to export of a GeneralizedRCNN with these heads, an `Exportable`.
        recipe_rules: (config, `data.fingerprint.Fingerprint`) -> {config key: (value, reason)}, see
            `methods.AutoRecipe`.
    """

    exportable: Callable
    recipe_rules: Callable

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
            proposals: returned unchanged in training.
            targets: ground truth of each image, in training.

        Returns:
            the proposals and a dict of scalar losses in training, else N Instances and {}.
        """
        if not self.training:
            return [filter_detections(x) for x in self.infer(images, features)], {}
        return proposals, self.losses(images, features, ensure_masks(targets, self))

    def forward_with_given_boxes(self, features: dict[str, torch.Tensor], instances: Sequence[Instances]):
        """
        Raises:
            ValueError: always. Detectron2's test-time augmentation asks for masks in boxes from other images.
        """
        raise ValueError(f"{type(self).__name__} cannot predict masks in given boxes; set TEST.AUG.ENABLED to False.")
