"""The three published versions of EmbedMask, and its config keys as arguments of FCOS."""

from dataclasses import dataclass

import torch

from ...config.embedmask import embedmask_version
from ..proposal_generator.fcos_head import FCOSHead
from ..proposal_generator.fcos_inference import DetectionLimits


@dataclass(frozen=True)
class Version:
    """
    The properties of a version that have no config key.

    Attributes:
        spatial: add the position to the first two embedding dimensions.
        margin: "box" (one number, from the predicted box), "scalar" (one number, from the box tower) or "dimension"
            (one number per embedding dimension, from the box tower).
        averaged: use the mean of an object's good locations as its proposal, not the best location.
        min_probability: the mask loss clamps probabilities to at least this.
        log_masks: resize and threshold masks as log-probabilities, not as probabilities.
    """

    spatial: bool
    margin: str
    averaged: bool
    min_probability: float
    log_masks: bool


VERSIONS = {
    "v1": Version(spatial=False, margin="box", averaged=True, min_probability=0.0, log_masks=False),
    "v2": Version(spatial=True, margin="scalar", averaged=False, min_probability=1e-9, log_masks=False),
    "v3": Version(spatial=True, margin="dimension", averaged=False, min_probability=1e-9, log_masks=True),
}


def version_of(cfg) -> Version:
    """The version that MODEL.EMBED_MASK selects."""
    return VERSIONS[embedmask_version(cfg)]


def fcos_arguments(cfg, input_shape) -> dict:
    """
    The arguments of `FCOS` from MODEL.EMBED_MASK.

    Args:
        input_shape: name -> shape of the backbone's maps; the level of stride 2^k is called pk.

    Raises:
        ValueError: the backbone lacks a level.
    """
    node = cfg.MODEL.EMBED_MASK
    names = {stride: f"p{stride.bit_length() - 1}" for stride in node.FPN_STRIDES}
    wrong = [stride for stride, name in names.items() if name not in input_shape or input_shape[name].stride != stride]
    if wrong:
        raise ValueError(
            f"MODEL.EMBED_MASK.FPN_STRIDES names {wrong[0]}; the backbone has {', '.join(input_shape)} "
            "(MODEL.FCOS.TOP_LEVELS adds p6 and p7)."
        )
    limits = DetectionLimits(
        score_threshold=node.INFERENCE_TH,
        pre_nms_topk=node.PRE_NMS_TOP_N,
        post_nms_topk=cfg.TEST.DETECTIONS_PER_IMAGE,
        nms_threshold=node.NMS_TH,
        sqrt_scores=False,
        clip=True,
        inclusive=node.INCLUSIVE_BOXES,
    )
    head = FCOSHead(
        channels=input_shape[names[node.FPN_STRIDES[0]]].channels,
        strides=node.FPN_STRIDES,
        num_classes=node.NUM_CLASSES - 1,
        num_class_convs=node.HEAD_NUM_CONVS,
        num_box_convs=node.HEAD_NUM_CONVS,
        norm=node.NORM,
        deformable=node.USE_DCN_IN_TOWER,
        prior_prob=node.PRIOR_PROB,
    )
    return {
        "head": head,
        "in_features": [names[stride] for stride in node.FPN_STRIDES],
        "size_bounds": node.FPN_INTEREST_SPLIT,
        "center_sample": node.CENTER_ON,
        "radius": node.CENTER_POS_RADIOS,
        "focal_alpha": node.LOSS_ALPHA,
        "focal_gamma": node.LOSS_GAMMA,
        "box_loss": node.IOU_LOSS_TYPE,
        "limits_train": limits,
        "limits_test": limits,
        "inclusive": node.INCLUSIVE_BOXES,
        "hull_epsilon": 1e-7,
        "min_quality_sum": torch.finfo(torch.float32).tiny,
    }
