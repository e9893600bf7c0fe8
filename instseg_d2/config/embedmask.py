"""Keys of EmbedMask, with the authors' names. None: the value of the version, see modeling/embedmask/versions.py."""

from detectron2.config import CfgNode


def add_embedmask_config(cfg: CfgNode) -> None:
    """Add MODEL.EMBED_MASK, in place."""
    node = CfgNode()
    # v1 (the paper of 2019), v2 (May 2020) or v3 (IJCAI 2021). Empty: v1 where one of the three keys that only v1 has
    # is on, v2 with EMBED_DIM 8 or a BOX_PADDING, v3 with EMBED_DIM 16, BOX_PADDING -1 or neither.
    node.VERSION = ""
    node.NUM_CLASSES = 81  # counts the background: one more than the classes of the data

    # The detector, FCOS.
    node.FPN_STRIDES = [8, 16, 32, 64, 128]
    node.FPN_INTEREST_SPLIT = [64, 128, 256, 512]  # upper ends of the levels' ranges of max(l, t, r, b), pixels
    node.HEAD_NUM_CONVS = 4
    node.NORM = "GN"  # of the towers, ours: GN, BN, SyncBN (the last two with one norm per level) or none
    node.USE_DCN_IN_TOWER = False  # last convolution of each tower deformable
    node.PRIOR_PROB = 0.01
    node.NORM_REG_TARGETS = True  # accepted for the authors' files: distances are in strides
    node.CENTERNESS_ON_REG = True  # accepted for the authors' files: centerness reads the box tower
    node.CENTER_ON = True
    node.CENTER_POS_RADIOS = 1.5  # strides
    node.SAMPLE_IN_MASK = True  # positive locations lie inside the object's mask
    node.LOSS_ALPHA = 0.25
    node.LOSS_GAMMA = 2.0
    node.IOU_LOSS_TYPE = "giou"  # giou, iou or linear_iou
    node.INFERENCE_TH = 0.05
    node.PRE_NMS_TOP_N = 1000  # of each level; TEST.DETECTIONS_PER_IMAGE are kept after NMS
    node.NMS_TH = 0.6
    # The authors' boxes end at their last pixel, Detectron2's one beyond it. True for the authors' weights; a
    # pixel is one of the original image.
    node.INCLUSIVE_BOXES = False

    # Embeddings and margins.
    node.EMBED_DIM = None  # 32, 8, 16
    node.EMBED_REDUCE_FACTOR = 1.0  # divides the towers before the embeddings
    node.MARGIN_REDUCE_FACTOR = 32.0  # divides the box tower before the margin
    node.PRIOR_MARGIN = 2.0  # delta: distance at which the initial probability is 0.5
    node.FIX_MARGIN = False  # -log(0.5) / PRIOR_MARGIN^2 everywhere instead of the predicted margin
    node.MASK_NUM_CONVS = 4
    node.MASK_SCALE_FACTOR = 2  # P3 to the masks: 1, 2 or 4

    # Mask loss and masks.
    # The loss reads the box grown by this share of its sides and a cell; below 0: the whole map. 0.1, 0.1, -1.
    node.BOX_PADDING = None
    node.LOSS_MASK_ALPHA = 0.5
    node.MASK_TH = None  # probability; 0.5, 0.53, 0.53

    # On in v1 alone: 0.5, 0.1, True.
    node.SAMPLE_POS_IOU_TH = None  # a proposal is the mean of the positives with a better box
    node.LOSS_SMOOTH_ALPHA = None
    node.BOX_TO_MARGIN_BLOCK = None  # the margin comes from the predicted box
    node.BOX_TO_MARGIN_SCALE = 800.0  # pixels; -1: shorter side of the padded batch
    cfg.MODEL.EMBED_MASK = node
