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
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]  # maps that the heads see
    node.FPN_STRIDES = [8, 16, 32, 64, 128]  # strides of these maps, pixels
    node.SIZES_OF_INTEREST = [64, 128, 256, 512]  # upper ends of the levels' ranges of max(l, t, r, b), pixels
    node.TOP_LEVELS = 2  # levels above P5 that the backbone builder adds: 0, 1 (P6) or 2 (P6, P7)

    node.NUM_CLS_CONVS = 4  # 3x3 convolutions of the class tower
    node.NUM_BOX_CONVS = 4  # 3x3 convolutions of the box tower
    node.NUM_SHARE_CONVS = 0  # 3x3 convolutions of a tower before both
    node.NORM = "GN"  # GN, NaiveGN, BN, SyncBN (the last two with one norm per level) or none
    node.USE_DEFORMABLE = False  # the last convolution of the class and box towers is deformable
    node.USE_SCALE = True  # one learned factor per level on the box regression
    node.USE_RELU = True  # accepted for AdelaiDet's files; the regression always ends in ReLU
    node.PRIOR_PROB = 0.01  # initial foreground probability

    node.CENTER_SAMPLE = True  # positive locations lie near the centre of the box; False: anywhere in it
    node.POS_RADIUS = 1.5  # with CENTER_SAMPLE: how near, in strides
    node.LOSS_ALPHA = 0.25  # of the focal loss
    node.LOSS_GAMMA = 2.0  # of the focal loss
    node.LOSS_WEIGHT_CLS = 1.0  # weight of the class loss
    node.LOSS_NORMALIZER_CLS = "fg"  # fg, moving_fg or all: positives, their moving average, locations
    node.LOC_LOSS_TYPE = "giou"  # box loss: giou, iou or linear_iou
    node.BOX_QUALITY = "ctrness"  # what the quality branch predicts: ctrness (centerness) or iou

    node.THRESH_WITH_CTR = False  # threshold on class * quality instead of class
    node.INFERENCE_TH_TRAIN = 0.05  # minimum score of a candidate, in training (if there are proposals)
    node.INFERENCE_TH_TEST = 0.05  # the same at test time
    node.PRE_NMS_TOPK_TRAIN = 1000  # candidates of each level before NMS, in training
    node.PRE_NMS_TOPK_TEST = 1000  # the same at test time
    node.POST_NMS_TOPK_TRAIN = 100  # detections of an image after NMS, in training; 0: all
    node.POST_NMS_TOPK_TEST = 100  # the same at test time
    node.NMS_TH = 0.6  # box IoU of NMS within a class; 0: no NMS
    node.YIELD_PROPOSAL = False  # make proposals in training, too (FCOSDetector; the other detectors always do)
    node.YIELD_BOX_FEATURES = False  # add the box tower's features to the proposals, as box_features
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
