"""Keys of FCOS, with AdelaiDet's names and defaults."""

from detectron2.config import CfgNode

from .values import (
    above,
    at_least,
    between,
    check_values,
    each,
    norm,
    one_of,
    probability,
    require,
    section,
    whole,
    words,
)

FCOS_VALUES = {
    **section(
        "MODEL.FCOS",
        NUM_CLASSES=at_least(1),
        IN_FEATURES=words(min_length=1),
        FPN_STRIDES=each(whole(1)),
        SIZES_OF_INTEREST=each(above(0), min_length=0),
        TOP_LEVELS=one_of(0, 1, 2),
        NUM_CLS_CONVS=at_least(0),
        NUM_BOX_CONVS=at_least(0),
        NUM_SHARE_CONVS=at_least(0),
        NORM=norm,
        PRIOR_PROB=probability,
        POS_RADIUS=above(0),
        LOSS_ALPHA=between(0, 1),
        LOSS_GAMMA=at_least(0),
        LOSS_WEIGHT_CLS=at_least(0),
        LOSS_NORMALIZER_CLS=one_of("fg", "moving_fg", "all"),
        LOC_LOSS_TYPE=one_of("giou", "iou", "linear_iou"),
        BOX_QUALITY=one_of("ctrness", "iou"),
        INFERENCE_TH_TRAIN=between(0, 1),
        INFERENCE_TH_TEST=between(0, 1),
        PRE_NMS_TOPK_TRAIN=at_least(1),
        PRE_NMS_TOPK_TEST=at_least(1),
        POST_NMS_TOPK_TRAIN=at_least(0),
        POST_NMS_TOPK_TEST=at_least(0),
        NMS_TH=between(0, 1),
    ),
}


def add_fcos_config(cfg: CfgNode) -> None:
    """Add MODEL.FCOS, in place."""
    node = CfgNode()
    node.NUM_CLASSES = 80  # foreground classes; GeneralizedRCNN uses MODEL.ROI_HEADS.NUM_CLASSES
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    node.FPN_STRIDES = [8, 16, 32, 64, 128]
    node.SIZES_OF_INTEREST = [64, 128, 256, 512]  # upper ends of the levels' ranges of max(l, t, r, b), pixels
    node.TOP_LEVELS = 2  # levels above P5 that the backbone builder adds: 0, 1 (P6) or 2 (P6, P7)

    node.NUM_CLS_CONVS = 4
    node.NUM_BOX_CONVS = 4
    node.NUM_SHARE_CONVS = 0
    node.NORM = "GN"  # GN, NaiveGN, BN, SyncBN (the last two with one norm per level) or none
    node.USE_DEFORMABLE = False  # the last convolution of the class and box towers is deformable
    node.USE_SCALE = True  # one learned factor per level on the box regression
    node.USE_RELU = True  # accepted for AdelaiDet's files; the regression always ends in ReLU
    node.PRIOR_PROB = 0.01

    node.CENTER_SAMPLE = True
    node.POS_RADIUS = 1.5
    node.LOSS_ALPHA = 0.25
    node.LOSS_GAMMA = 2.0
    node.LOSS_WEIGHT_CLS = 1.0
    node.LOSS_NORMALIZER_CLS = "fg"  # fg, moving_fg or all
    node.LOC_LOSS_TYPE = "giou"  # giou, iou or linear_iou
    node.BOX_QUALITY = "ctrness"  # ctrness or iou

    node.THRESH_WITH_CTR = False  # threshold on class * quality instead of class
    node.INFERENCE_TH_TRAIN = 0.05
    node.INFERENCE_TH_TEST = 0.05
    node.PRE_NMS_TOPK_TRAIN = 1000
    node.PRE_NMS_TOPK_TEST = 1000
    node.POST_NMS_TOPK_TRAIN = 100
    node.POST_NMS_TOPK_TEST = 100
    node.NMS_TH = 0.6
    node.YIELD_PROPOSAL = False  # FCOSDetector: also in training; the other detectors always need proposals
    node.YIELD_BOX_FEATURES = False
    cfg.MODEL.FCOS = node


def check_fcos_config(cfg: CfgNode) -> None:
    """Raise ConfigError for invalid values."""
    check_values(cfg, FCOS_VALUES)
    if cfg.MODEL.PROPOSAL_GENERATOR.NAME != "FCOS":
        return
    node = cfg.MODEL.FCOS
    require(
        len(node.IN_FEATURES) == len(node.FPN_STRIDES) == len(node.SIZES_OF_INTEREST) + 1,
        "MODEL.FCOS.IN_FEATURES and FPN_STRIDES must have the same length, and SIZES_OF_INTEREST one value less; got "
        f"{len(node.IN_FEATURES)}, {len(node.FPN_STRIDES)} and {len(node.SIZES_OF_INTEREST)}.",
    )
    require(
        not (node.YIELD_BOX_FEATURES and serves_roi_heads(cfg) and cfg.MODEL.ROI_HEADS.PROPOSAL_APPEND_GT),
        "MODEL.FCOS.YIELD_BOX_FEATURES needs MODEL.ROI_HEADS.PROPOSAL_APPEND_GT False: the ground-truth boxes that "
        "Detectron2 adds to the proposals have no features.",
    )


def serves_roi_heads(cfg: CfgNode) -> bool:
    """Whether FCOS makes proposals for a Detectron2 detector, whose ROI heads then set the number of classes."""
    return cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "PanopticFPN")
