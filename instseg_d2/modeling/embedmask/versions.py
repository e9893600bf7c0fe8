"""The three published versions of EmbedMask, and its keys as arguments of FCOS."""

from dataclasses import dataclass
from typing import Union

import torch

from ...errors import ConfigError
from ..losses import LTRB_LOSSES
from ..proposal_generator.fcos_head import FCOSHead
from ..proposal_generator.fcos_inference import DetectionLimits


@dataclass(frozen=True)
class Version:
    """
    What a version decides and no key says.

    Attributes:
        spatial: the first two dimensions of an embedding follow the location.
        margin: "box" (one number, from the predicted box), "scalar" (one number, from the box tower) or "dimension"
            (one number for each dimension of the embedding).
        averaged: an object's proposal is the mean over its good locations, not its best location.
        least_probability: probabilities below it are raised to it in the mask loss.
        log_masks: masks are resized and thresholded as log-probabilities, not as probabilities.
    """

    spatial: bool
    margin: str
    averaged: bool
    least_probability: float
    log_masks: bool


VERSIONS = {
    "v1": Version(spatial=False, margin="box", averaged=True, least_probability=0.0, log_masks=False),
    "v2": Version(spatial=True, margin="scalar", averaged=False, least_probability=1e-9, log_masks=False),
    "v3": Version(spatial=True, margin="dimension", averaged=False, least_probability=1e-9, log_masks=True),
}


# Values where a config says None.
_BY_VERSION = {
    "EMBED_DIM": {"v1": 32, "v2": 8, "v3": 16},
    "BOX_PADDING": {"v1": 0.1, "v2": 0.1, "v3": -1.0},
    "MASK_TH": {"v1": 0.5, "v2": 0.53, "v3": 0.53},
    "SAMPLE_POS_IOU_TH": {"v1": 0.5, "v2": 0.0, "v3": 0.0},
    "LOSS_SMOOTH_ALPHA": {"v1": 0.1, "v2": 0.0, "v3": 0.0},
    "BOX_TO_MARGIN_BLOCK": {"v1": True, "v2": False, "v3": False},
}
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "True or False"}


def _given(cfg, key: str) -> Union[int, float, bool, None]:
    """MODEL.EMBED_MASK.<key>, None where the version says it; ConfigError where it has another type than there."""
    value, expected = cfg.MODEL.EMBED_MASK[key], type(_BY_VERSION[key]["v1"])
    if expected is float and type(value) is int:
        value = float(value)
    if value is not None and type(value) is not expected:
        raise ConfigError(f"MODEL.EMBED_MASK.{key} is {value!r}; it must be {_TYPE_NAMES[expected]}.")
    return value


def _version_name(cfg) -> str:
    name = cfg.MODEL.EMBED_MASK.VERSION
    if name:
        if name not in VERSIONS:
            raise ConfigError(f"MODEL.EMBED_MASK.VERSION is {name!r}; it must be one of {', '.join(VERSIONS)}.")
        return name
    if any((_given(cfg, key) or 0) > 0 for key in ("LOSS_SMOOTH_ALPHA", "SAMPLE_POS_IOU_TH", "BOX_TO_MARGIN_BLOCK")):
        return "v1"
    dim, padding = _given(cfg, "EMBED_DIM"), _given(cfg, "BOX_PADDING")
    for name in ("v3", "v2"):
        inside_boxes = _BY_VERSION["BOX_PADDING"][name] >= 0
        if dim in (None, _BY_VERSION["EMBED_DIM"][name]) and (padding is None or (padding >= 0) == inside_boxes):
            return name
    raise ConfigError(
        f"MODEL.EMBED_MASK.EMBED_DIM {dim} with BOX_PADDING {padding} tells no version: set "
        "MODEL.EMBED_MASK.VERSION to v1, v2 or v3."
    )


def version_of(cfg) -> Version:
    """
    The version that MODEL.EMBED_MASK.VERSION names, or else the one that the other keys mean.

    Raises:
        ConfigError: VERSION is unknown, or empty while the keys belong to no version.
    """
    return VERSIONS[_version_name(cfg)]


def value_of(cfg, key: str) -> Union[int, float, bool]:
    """
    MODEL.EMBED_MASK.<key>, or the value of the config's version where that is None.

    Raises:
        ConfigError: as of `version_of`; the value is no number, or not True or False.
    """
    value = _given(cfg, key)
    return _BY_VERSION[key][_version_name(cfg)] if value is None else value


def check_margin(cfg) -> None:
    """
    Raises:
        ConfigError: MODEL.EMBED_MASK.BOX_TO_MARGIN_BLOCK contradicts the version.
    """
    from_box = version_of(cfg).margin == "box"
    if value_of(cfg, "BOX_TO_MARGIN_BLOCK") != from_box:
        raise ConfigError(
            f"MODEL.EMBED_MASK.BOX_TO_MARGIN_BLOCK is {not from_box}; it is True in v1 and False in v2 and v3."
        )


def check_divisors(cfg) -> None:
    """
    Raises:
        ConfigError: a key of MODEL.EMBED_MASK that something is divided by is not above 0.
    """
    for key in ("PRIOR_MARGIN", "EMBED_REDUCE_FACTOR", "MARGIN_REDUCE_FACTOR"):
        if not cfg.MODEL.EMBED_MASK[key] > 0:
            raise ConfigError(f"MODEL.EMBED_MASK.{key} is {cfg.MODEL.EMBED_MASK[key]}; it must be above 0.")


def mask_stride(cfg) -> int:
    """Input pixels of a cell of the pixel embeddings: the finest stride divided by MASK_SCALE_FACTOR."""
    node = cfg.MODEL.EMBED_MASK
    if node.MASK_SCALE_FACTOR < 1:
        raise ConfigError(f"MODEL.EMBED_MASK.MASK_SCALE_FACTOR is {node.MASK_SCALE_FACTOR}; it must be at least 1.")
    stride = node.FPN_STRIDES[0] // node.MASK_SCALE_FACTOR
    if stride * node.MASK_SCALE_FACTOR != node.FPN_STRIDES[0] or stride % 2:
        raise ConfigError(
            f"MODEL.EMBED_MASK.MASK_SCALE_FACTOR {node.MASK_SCALE_FACTOR} must divide the finest of FPN_STRIDES, "
            f"{node.FPN_STRIDES[0]}, into an even number of pixels."
        )
    return stride


def fcos_arguments(cfg, input_shape) -> dict:
    """
    The arguments of `FCOS` from MODEL.EMBED_MASK.

    Args:
        input_shape: of the backbone's maps; a level of stride 2^k is called pk.

    Raises:
        ConfigError: a value that cannot be used.
    """
    node = cfg.MODEL.EMBED_MASK
    if node.NUM_CLASSES < 2:
        raise ConfigError(
            f"MODEL.EMBED_MASK.NUM_CLASSES is {node.NUM_CLASSES}; it counts the background, so that it is at least 2."
        )
    if not (node.NORM_REG_TARGETS and node.CENTERNESS_ON_REG):
        raise ConfigError("MODEL.EMBED_MASK.NORM_REG_TARGETS and CENTERNESS_ON_REG must be True.")
    if node.IOU_LOSS_TYPE not in LTRB_LOSSES:
        raise ConfigError(
            f"MODEL.EMBED_MASK.IOU_LOSS_TYPE is {node.IOU_LOSS_TYPE!r}; it must be one of {', '.join(LTRB_LOSSES)}."
        )
    if not 1e-4 <= value_of(cfg, "MASK_TH") < 1:
        raise ConfigError(f"MODEL.EMBED_MASK.MASK_TH is {node.MASK_TH}; it is a probability from 0.0001 to 1.")
    if value_of(cfg, "EMBED_DIM") < 2:
        raise ConfigError(f"MODEL.EMBED_MASK.EMBED_DIM is {node.EMBED_DIM}; it must be at least 2.")
    check_margin(cfg)
    check_divisors(cfg)
    if len(node.FPN_INTEREST_SPLIT) != len(node.FPN_STRIDES) - 1 or list(node.FPN_STRIDES) != sorted(node.FPN_STRIDES):
        raise ConfigError(
            f"MODEL.EMBED_MASK: {len(node.FPN_STRIDES)} FPN_STRIDES, finest first, need one less "
            f"FPN_INTEREST_SPLIT; got {len(node.FPN_INTEREST_SPLIT)}."
        )
    names = {stride: f"p{stride.bit_length() - 1}" for stride in node.FPN_STRIDES}
    wrong = [stride for stride, name in names.items() if name not in input_shape or input_shape[name].stride != stride]
    if wrong:
        raise ConfigError(
            f"MODEL.EMBED_MASK.FPN_STRIDES names {wrong[0]}; the backbone has {', '.join(input_shape)} "
            "(MODEL.FCOS.TOP_LEVELS adds p6 and p7)."
        )
    limits = DetectionLimits(
        score_threshold=node.INFERENCE_TH,
        pre_nms_topk=node.PRE_NMS_TOP_N,
        post_nms_topk=cfg.TEST.DETECTIONS_PER_IMAGE,
        nms_threshold=node.NMS_TH,
        rooted=False,
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
        "least_quality": torch.finfo(torch.float32).tiny,
    }
