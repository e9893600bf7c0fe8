"""Keys of EmbedMask, with the authors' names, and the version that a config selects."""

from typing import Union

from detectron2.config import CfgNode

from .values import (
    Rule,
    above,
    at_least,
    between,
    check_values,
    each,
    norm,
    one_of,
    only,
    or_none,
    probability,
    require,
    section,
    whole,
)

# Defaults of the keys that are None.
_BY_VERSION = {
    "EMBED_DIM": {"v1": 32, "v2": 8, "v3": 16},
    "BOX_PADDING": {"v1": 0.1, "v2": 0.1, "v3": -1.0},
    "MASK_TH": {"v1": 0.5, "v2": 0.53, "v3": 0.53},
    "SAMPLE_POS_IOU_TH": {"v1": 0.5, "v2": 0.0, "v3": 0.0},
    "LOSS_SMOOTH_ALPHA": {"v1": 0.1, "v2": 0.0, "v3": 0.0},
    "BOX_TO_MARGIN_BLOCK": {"v1": True, "v2": False, "v3": False},
}

EMBEDMASK_VALUES = {
    **section(
        "MODEL.EMBED_MASK",
        VERSION=one_of("v1", "v2", "v3", ""),
        NUM_CLASSES=Rule("at least 2, since it includes the background", at_least(2).holds),
        FPN_STRIDES=each(whole(1)),
        FPN_INTEREST_SPLIT=each(above(0), min_length=0),
        HEAD_NUM_CONVS=at_least(0),
        NORM=norm,
        PRIOR_PROB=probability,
        NORM_REG_TARGETS=only(True, "distances are in strides"),
        CENTERNESS_ON_REG=only(True, "centerness reads the box tower"),
        CENTER_POS_RADIOS=above(0),
        LOSS_ALPHA=between(0, 1),
        LOSS_GAMMA=at_least(0),
        IOU_LOSS_TYPE=one_of("giou", "iou", "linear_iou"),
        INFERENCE_TH=between(0, 1),
        PRE_NMS_TOP_N=at_least(1),
        NMS_TH=between(0, 1),
        EMBED_DIM=or_none(whole(2)),
        EMBED_REDUCE_FACTOR=above(0),
        MARGIN_REDUCE_FACTOR=above(0),
        PRIOR_MARGIN=above(0),
        MASK_NUM_CONVS=at_least(0),
        MASK_SCALE_FACTOR=at_least(1),
        BOX_PADDING=or_none(at_least(-1)),
        LOSS_MASK_ALPHA=at_least(0),
        MASK_TH=or_none(Rule("from 0.0001 to below 1", lambda value: between(1e-4, 1).holds(value) and value < 1)),
        SAMPLE_POS_IOU_TH=or_none(between(0, 1)),
        LOSS_SMOOTH_ALPHA=or_none(at_least(0)),
        BOX_TO_MARGIN_BLOCK=or_none(one_of(True, False)),
        BOX_TO_MARGIN_SCALE=Rule("above 0, or -1", lambda value: value == -1 or above(0).holds(value)),
    ),
}


def add_embedmask_config(cfg: CfgNode) -> None:
    """Add MODEL.EMBED_MASK, in place."""
    node = CfgNode()
    # v1 (the paper of 2019), v2 (May 2020) or v3 (IJCAI 2021). Empty: v1 if one of the three keys of v1 is on, v2 with
    # EMBED_DIM 8 or a BOX_PADDING, v3 with EMBED_DIM 16, BOX_PADDING -1 or neither.
    node.VERSION = ""
    node.NUM_CLASSES = 81  # includes the background: one more than the classes of the data

    # The detector, FCOS.

    node.FPN_STRIDES = [8, 16, 32, 64, 128]  # strides of the levels, pixels
    node.FPN_INTEREST_SPLIT = [64, 128, 256, 512]  # upper ends of the levels' ranges of max(l, t, r, b), pixels
    node.HEAD_NUM_CONVS = 4  # 3x3 convolutions of each tower
    node.NORM = "GN"  # of the towers, ours: GN, BN, SyncBN (the last two with one norm per level) or none
    node.USE_DCN_IN_TOWER = False  # the last convolution of each tower is deformable
    node.PRIOR_PROB = 0.01  # initial foreground probability
    node.NORM_REG_TARGETS = True  # accepted for the authors' files: distances are in strides
    node.CENTERNESS_ON_REG = True  # accepted for the authors' files: centerness reads the box tower
    node.CENTER_ON = True  # positive locations lie near the centre of the box; False: anywhere in it
    node.CENTER_POS_RADIOS = 1.5  # with CENTER_ON: how near, in strides
    node.SAMPLE_IN_MASK = True  # positive locations lie inside the object's mask
    node.LOSS_ALPHA = 0.25  # of the focal loss
    node.LOSS_GAMMA = 2.0  # of the focal loss
    node.IOU_LOSS_TYPE = "giou"  # box loss: giou, iou or linear_iou
    node.INFERENCE_TH = 0.05  # minimum class score of a candidate
    node.PRE_NMS_TOP_N = 1000  # candidates of each level; TEST.DETECTIONS_PER_IMAGE are kept after NMS
    node.NMS_TH = 0.6  # box IoU of NMS within a class
    # The authors' boxes end at their last pixel, Detectron2's one pixel beyond it (pixels of the original image). Set
    # True for the authors' weights.
    node.INCLUSIVE_BOXES = False

    # Embeddings and margins.

    node.EMBED_DIM = None  # dimensions of the embeddings; None: 32, 8 or 16 in v1, v2, v3
    node.EMBED_REDUCE_FACTOR = 1.0  # divides the towers before the embeddings
    node.MARGIN_REDUCE_FACTOR = 32.0  # divides the box tower before the margin
    node.PRIOR_MARGIN = 2.0  # delta: distance at which the initial probability is 0.5
    node.FIX_MARGIN = False  # -log(0.5) / PRIOR_MARGIN^2 everywhere instead of the predicted margin
    node.MASK_NUM_CONVS = 4  # 3x3 convolutions of the tower of the pixel embeddings
    node.MASK_SCALE_FACTOR = 2  # how much finer the masks are than P3: 1, 2 or 4

    # Mask loss and masks.

    # The loss covers the box enlarged by this share of its sides plus one cell; below 0: the whole map.
    # None: 0.1, 0.1 or -1 in v1, v2, v3.
    node.BOX_PADDING = None
    node.LOSS_MASK_ALPHA = 0.5  # weight of the mask loss
    node.MASK_TH = None  # probability from which a pixel belongs to the mask; None: 0.5, 0.53 or 0.53 in v1, v2, v3

    node.SAMPLE_POS_IOU_TH = None  # v1: a proposal is the mean of the positives whose box has a higher IoU; None: 0.5
    node.LOSS_SMOOTH_ALPHA = None  # v1: weight of the loss that pulls an object's positives together; None: 0.1
    node.BOX_TO_MARGIN_BLOCK = None  # v1: the margin comes from the predicted box; None: True
    node.BOX_TO_MARGIN_SCALE = 800.0  # v1: divides the box, pixels; -1: by the shorter side of the padded batch
    cfg.MODEL.EMBED_MASK = node


def embedmask_version(cfg: CfgNode) -> str:
    """
    "v1", "v2" or "v3": MODEL.EMBED_MASK.VERSION, or the version that the other keys imply.

    Raises:
        ConfigError: they imply none.
    """
    node = cfg.MODEL.EMBED_MASK
    if node.VERSION:
        return node.VERSION
    if any((node[key] or 0) > 0 for key in ("LOSS_SMOOTH_ALPHA", "SAMPLE_POS_IOU_TH", "BOX_TO_MARGIN_BLOCK")):
        return "v1"
    dim, padding = node.EMBED_DIM, node.BOX_PADDING
    for name in ("v3", "v2"):
        inside_boxes = _BY_VERSION["BOX_PADDING"][name] >= 0
        if dim in (None, _BY_VERSION["EMBED_DIM"][name]) and (padding is None or (padding >= 0) == inside_boxes):
            return name
    require(
        False,
        f"MODEL.EMBED_MASK.EMBED_DIM {dim} with BOX_PADDING {padding} fits no version: set MODEL.EMBED_MASK.VERSION "
        "to v1, v2 or v3.",
    )


def embedmask_value(cfg: CfgNode, key: str) -> Union[int, float, bool]:
    """MODEL.EMBED_MASK.<key>, or the default of the config's version if it is None."""
    value, default = cfg.MODEL.EMBED_MASK[key], _BY_VERSION[key][embedmask_version(cfg)]
    return default if value is None else type(default)(value)


def _is_sorted(values) -> bool:
    return list(values) == sorted(values)


def mask_stride(cfg: CfgNode) -> int:
    """Stride of the pixel embeddings in input pixels: the finest stride divided by MASK_SCALE_FACTOR."""
    return cfg.MODEL.EMBED_MASK.FPN_STRIDES[0] // cfg.MODEL.EMBED_MASK.MASK_SCALE_FACTOR


def check_embedmask_config(cfg: CfgNode) -> None:
    """Raise ConfigError for invalid values."""
    check_values(cfg, EMBEDMASK_VALUES)
    head = cfg.MODEL.ROI_MASK_HEAD.NAME == "EmbedMaskHead"
    if not head and cfg.MODEL.META_ARCHITECTURE != "EmbedMask":
        return
    node = cfg.MODEL.EMBED_MASK
    require(
        head or cfg.TEST.DETECTIONS_PER_IMAGE >= 1,
        f"TEST.DETECTIONS_PER_IMAGE is {cfg.TEST.DETECTIONS_PER_IMAGE}; EmbedMask keeps at least 1.",
    )
    from_box = embedmask_version(cfg) == "v1"
    require(
        embedmask_value(cfg, "BOX_TO_MARGIN_BLOCK") == from_box,
        f"MODEL.EMBED_MASK.BOX_TO_MARGIN_BLOCK is {not from_box}; it is True in v1 and False in v2 and v3.",
    )
    require(
        not head or node.BOX_TO_MARGIN_SCALE > 0,
        f"MODEL.EMBED_MASK.BOX_TO_MARGIN_SCALE is {node.BOX_TO_MARGIN_SCALE}; with EmbedMaskHead it must be above 0.",
    )
    require(
        head or (len(node.FPN_INTEREST_SPLIT) == len(node.FPN_STRIDES) - 1 and _is_sorted(node.FPN_STRIDES)),
        "MODEL.EMBED_MASK.FPN_STRIDES must ascend and have one value more than FPN_INTEREST_SPLIT; got "
        f"{node.FPN_STRIDES} and {node.FPN_INTEREST_SPLIT}.",
    )
    require(
        node.FPN_STRIDES[0] % (2 * node.MASK_SCALE_FACTOR) == 0,
        f"MODEL.EMBED_MASK.MASK_SCALE_FACTOR is {node.MASK_SCALE_FACTOR}; the finest of FPN_STRIDES, "
        f"{node.FPN_STRIDES[0]}, divided by it must be an even number of pixels.",
    )
