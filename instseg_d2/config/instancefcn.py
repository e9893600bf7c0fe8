"""Keys of InstanceFCN, with the paper's values as defaults."""

from detectron2.config import CfgNode

from .values import above, at_least, between, check_values, each, one_of, require, section, whole

INSTANCEFCN_VALUES = {
    **section(
        "MODEL.INSTANCE_FCN",
        GRID=at_least(1),
        MASK_SIZE=at_least(1),
        HIDDEN_DIM=at_least(1),
        CANONICAL_SIZE=above(0),
        POSITIVE_OCTAVES=at_least(0),
        POSITIVE_SHIFT=at_least(0),
        NEGATIVE_OCTAVES=at_least(0),
        NEGATIVE_SHIFT=at_least(0),
        WINDOWS_PER_IMAGE=at_least(1),
        POSITIVE_FRACTION=between(0, 1),
        CELL_TARGET=one_of("center", "share"),
        SCALES_TEST=each(whole(1)),
        TOP_WINDOWS=at_least(1),
        SCORE=one_of("objectness", "product"),
        NMS_TH=between(0, 1),
        MAX_PROPOSALS=at_least(1),
        CLASSIFIER_SCALE=at_least(1),
    ),
    "MODEL.ASSEMBLE_MASK_HEAD.GRID": at_least(1),
}


def add_instancefcn_config(cfg: CfgNode) -> None:
    """Add MODEL.INSTANCE_FCN and MODEL.ASSEMBLE_MASK_HEAD, in place."""
    node = CfgNode()
    node.IN_FEATURE = "conv5"  # the backbone map to use; its stride is the size of a window's cell
    node.GRID = 5  # k: a window is divided k x k
    node.MASK_SIZE = 21  # m: cells per side of a window
    node.HIDDEN_DIM = 512  # channels of the hidden layers

    # Sizes and shifts in pixels of the network's input: a window of 21 cells of stride 8 is 168 pixels wide.
    node.CANONICAL_SIZE = 96.0  # longer side of the objects that windows are meant for
    node.POSITIVE_OCTAVES = 0.25  # positive: an object whose size is the canonical one times 2^(+-this) at most
    node.POSITIVE_SHIFT = 12.0  # positive: and its centre is at most this far from the window's in each axis
    node.NEGATIVE_OCTAVES = 1.0  # negative: no object whose size is the canonical one times 2^(+-this) at most
    node.NEGATIVE_SHIFT = 24.0  # negative: and its centre is closer than this in both axes
    node.WINDOWS_PER_IMAGE = 256  # windows of an image that are sampled in training
    node.POSITIVE_FRACTION = 0.5  # share of positives among them, at most; the rest are negatives
    # Target of a mask cell: "center", whether the object covers its centre, or "share", the covered share.
    node.CELL_TARGET = "center"

    # Shorter sides to which an image is resized at test time; INPUT.MAX_SIZE_TEST limits the longer one.
    node.SCALES_TEST = (119, 178, 267, 400, 600, 900)
    node.TOP_WINDOWS = 2000  # windows assembled at each scale, by objectness
    node.SCORE = "objectness"  # objectness, or product: objectness x mean mask probability inside the mask
    node.NMS_TH = 0.8  # box IoU of NMS
    node.MAX_PROPOSALS = 1000  # N: kept per image

    # Classify the segments with MODEL.ROI_HEADS, on the features of one of the test scales.
    node.CLASSIFY = False
    node.CLASSIFIER_SCALE = 600  # with CLASSIFY: the one of SCALES_TEST whose features are used
    cfg.MODEL.INSTANCE_FCN = node

    # Keys of AssembleMaskHead beside those of MODEL.ROI_MASK_HEAD.
    node = CfgNode()
    node.GRID = 5  # k: a box is divided k x k
    node.IN_FEATURE = "p3"  # the map of MODEL.ROI_HEADS.IN_FEATURES that the score maps are predicted from
    cfg.MODEL.ASSEMBLE_MASK_HEAD = node


def check_instancefcn_config(cfg: CfgNode) -> None:
    """Raise ConfigError for invalid values."""
    check_values(cfg, INSTANCEFCN_VALUES)
    if cfg.MODEL.META_ARCHITECTURE != "InstanceFCN":
        return
    node = cfg.MODEL.INSTANCE_FCN
    require(
        node.GRID <= node.MASK_SIZE,
        f"MODEL.INSTANCE_FCN.GRID is {node.GRID} and MASK_SIZE {node.MASK_SIZE}; GRID must be from 1 to MASK_SIZE.",
    )
    require(
        not node.CLASSIFY or node.CLASSIFIER_SCALE in node.SCALES_TEST,
        f"MODEL.INSTANCE_FCN.CLASSIFIER_SCALE is {node.CLASSIFIER_SCALE}; it must be one of SCALES_TEST: "
        f"{', '.join(map(str, node.SCALES_TEST))}.",
    )
