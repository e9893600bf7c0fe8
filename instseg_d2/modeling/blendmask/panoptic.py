"""
Panoptic segmentation with BlendMask: a semantic head for stuff, and the output of a panoptic model.

N images, D detections, H x W pixels. Class 0 of the semantic head stands for all things, the others are stuff.
"""

from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_sem_seg_head
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import Instances
from torch import nn

from ...errors import DatasetError
from ..ground_truth import pad_maps
from ..postprocessing import Combination


def build_semantic_head(cfg, input_shape: dict[str, ShapeSpec]) -> Optional[nn.Module]:
    """The head of MODEL.SEM_SEG_HEAD, or None if MODEL.PANOPTIC_FPN.COMBINE.ENABLED is False."""
    if not cfg.MODEL.PANOPTIC_FPN.COMBINE.ENABLED:
        return None
    missing = [name for name in cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES if name not in input_shape]
    if missing:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES names {', '.join(missing)}; the backbone has {', '.join(input_shape)} "
            "(for instances only, set MODEL.PANOPTIC_FPN.COMBINE.ENABLED to False)."
        )
    return build_sem_seg_head(cfg, input_shape)


def semantic_losses(head: nn.Module, features: dict, batched_inputs: Sequence[dict], size: tuple) -> dict:
    """
    The head's losses (loss_sem_seg) on the samples' ``sem_seg`` (H, W) int64, padded with its ``ignore_value``.

    Without a labelled pixel in the batch the loss is 0, but the head still gets a gradient.

    Args:
        size: (H, W) of the padded batch.

    Raises:
        DatasetError: a sample has no ``sem_seg``.
    """
    if not all("sem_seg" in x for x in batched_inputs):
        raise DatasetError(
            "panoptic BlendMask trains on data sets with semantic maps (sem_seg_file_name in their records); for "
            "instances only, set MODEL.PANOPTIC_FPN.COMBINE.ENABLED to False."
        )
    device = next(iter(features.values())).device
    target = pad_maps([x["sem_seg"] for x in batched_inputs], size, head.ignore_value, device)
    # The mean over no pixels is NaN, so such a batch gets some labels and weight 0.
    labelled = (target != head.ignore_value).any()
    losses = head(features, torch.where(labelled, target, 0))[1]
    return {name: loss * labelled for name, loss in losses.items()}


def panoptic_output(instances: Instances, logits: torch.Tensor, combination: Combination) -> dict:
    """
    The panoptic part of the output: "sem_seg" and, if the instances have masks, "panoptic_seg".

    Args:
        instances: at output size.
        logits: (classes, H, W) of the image in input pixels.
    """
    result = {"sem_seg": sem_seg_postprocess(logits, logits.shape[-2:], *instances.image_size)}
    if instances.has("pred_masks"):
        result["panoptic_seg"] = combination(instances, result["sem_seg"].argmax(dim=0))
    return result
