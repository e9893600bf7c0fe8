"""Merges instances and a semantic map into one panoptic map. D instances, H x W pixels."""

from typing import NamedTuple

import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.structures import Instances

from .run_lengths import RunLengthMasks


class Combination(NamedTuple):
    """
    Merges instances and stuff into one map, with the values of MODEL.PANOPTIC_FPN.COMBINE. Class 0 of the semantic map
    stands for all things, the others are stuff.
    """

    overlap_threshold: float  # drop an instance if better ones cover a larger share of it
    stuff_area_limit: float  # drop a stuff class with fewer pixels
    score_threshold: float

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.PANOPTIC_FPN.COMBINE
        return cls(node.OVERLAP_THRESH, node.STUFF_AREA_LIMIT, node.INSTANCES_CONFIDENCE_THRESH)

    def __call__(self, instances: Instances, labels: torch.Tensor):
        """
        Args:
            instances: at output size, with pred_masks (D, H, W) or run lengths.
            labels: (H, W) classes of the semantic head.

        Returns:
            (H, W) int32 segment ids, 0 for none, and a list of dicts with id, category_id (a contiguous id of a thing
            or stuff class), isthing and score or area.
        """
        if not isinstance(instances.pred_masks, RunLengthMasks):
            return combine_semantic_and_instance_outputs(instances, labels, *self)
        index = (instances.scores >= self.score_threshold).nonzero()[:, 0]  # the others do not enter the map
        confident = instances[index]
        confident.pred_masks = confident.pred_masks.decode()
        ids, segments = combine_semantic_and_instance_outputs(confident, labels, *self)
        for segment in segments:
            if segment["isthing"]:
                segment["instance_id"] = int(index[segment["instance_id"]])
        return ids, segments
