"""Keys of FCOS, with AdelaiDet's names and defaults."""

from detectron2.config import CfgNode


def add_fcos_config(cfg: CfgNode) -> None:
    """Add MODEL.FCOS and the keys of its backbones, in place."""
    node = CfgNode()
    node.NUM_CLASSES = 80  # foreground classes; in GeneralizedRCNN they are those of MODEL.ROI_HEADS
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    node.FPN_STRIDES = [8, 16, 32, 64, 128]
    node.SIZES_OF_INTEREST = [64, 128, 256, 512]  # upper ends of the levels' ranges of max(l, t, r, b), pixels
    node.TOP_LEVELS = 2  # levels above P5 that the backbone builder adds: 0, 1 (P6) or 2 (P6, P7)

    node.NUM_CLS_CONVS = 4
    node.NUM_BOX_CONVS = 4
    node.NUM_SHARE_CONVS = 0
    node.NORM = "GN"  # GN, NaiveGN, BN, SyncBN (the last two with one norm per level) or none
    node.USE_DEFORMABLE = False  # last conv of the class and box towers deformable
    node.USE_SCALE = True  # one learned factor a level on the box regression
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
    node.YIELD_PROPOSAL = False  # in training too, as always but in FCOSDetector
    node.YIELD_BOX_FEATURES = False
    cfg.MODEL.FCOS = node

    cfg.MODEL.RESNETS.DEFORM_INTERVAL = 1
    node = CfgNode()
    node.CONV_BODY = "DLA34"
    node.OUT_FEATURES = ["stage2", "stage3", "stage4", "stage5"]  # or levelN; stride 2 ** N
    node.NORM = "FrozenBN"  # or SyncBN, BN: trained
    cfg.MODEL.DLA = node
    # Accepted for AdelaiDet's files; True is refused when the backbone is built.
    cfg.MODEL.MOBILENET = False
    cfg.MODEL.BACKBONE.ANTI_ALIAS = False
