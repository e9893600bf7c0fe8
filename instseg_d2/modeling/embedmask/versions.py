"""The three published versions of EmbedMask, and its keys as arguments of the shared FCOS."""

from dataclasses import dataclass

from ...config import ConfigError
from ..proposal_generator.fcos_head import FCOSHead
from ..proposal_generator.fcos_inference import DetectionLimits


@dataclass(frozen=True)
class Version:
    """
    What no key of its own says.

    Attributes:
        spatial: the first two dimensions of an embedding follow the location.
        margin: "box" (one number from the predicted box), "scalar" (one from the box tower) or "dimension" (one for
            each dimension of the embedding).
        averaged: an object's proposal is the mean over its good locations, not its best location.
        least_probability: probabilities below it are raised to it in the mask loss.
        log_masks: masks are resized and compared as log-probabilities, not as probabilities.
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


def version_of(cfg) -> Version:
    """
    The version that MODEL.EMBED_MASK.VERSION names, or else the one that the other keys mean.

    Raises:
        ConfigError: VERSION is unknown, or empty while the keys belong to no version.
    """
    node = cfg.MODEL.EMBED_MASK
    name = node.VERSION
    if not name:
        if node.LOSS_SMOOTH_ALPHA > 0 or node.SAMPLE_POS_IOU_TH > 0 or node.BOX_TO_MARGIN_BLOCK:
            name = "v1"
        else:
            name = {(8, True): "v2", (16, False): "v3"}.get((node.EMBED_DIM, node.BOX_PADDING >= 0))
    if name is None:
        raise ConfigError(
            f"MODEL.EMBED_MASK.EMBED_DIM {node.EMBED_DIM} with BOX_PADDING {node.BOX_PADDING} tells no version: set "
            "MODEL.EMBED_MASK.VERSION to v1, v2 or v3."
        )
    if name not in VERSIONS:
        raise ConfigError(f"MODEL.EMBED_MASK.VERSION is {name!r}; it must be one of {', '.join(VERSIONS)}.")
    return VERSIONS[name]


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
    if node.IOU_LOSS_TYPE not in ("giou", "iou", "linear_iou"):
        raise ConfigError(f"MODEL.EMBED_MASK.IOU_LOSS_TYPE is {node.IOU_LOSS_TYPE!r}; use giou, iou or linear_iou.")
    if not 1e-4 <= node.MASK_TH < 1:
        raise ConfigError(f"MODEL.EMBED_MASK.MASK_TH is {node.MASK_TH}; it is a probability from 0.0001 to 1.")
    if node.EMBED_DIM < 2:
        raise ConfigError(f"MODEL.EMBED_MASK.EMBED_DIM is {node.EMBED_DIM}; it must be at least 2.")
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
    }
