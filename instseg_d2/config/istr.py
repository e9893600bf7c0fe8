"""Keys of ISTR, with the authors' names and defaults, and the version that a config selects."""

from typing import Any

from detectron2.config import CfgNode

from .values import (
    at_least,
    below_one,
    between,
    check_values,
    one_of,
    only,
    or_none,
    probability,
    require,
    section,
    whole,
)

ISTR_VALUES = {
    **section(
        "MODEL.ISTR",
        NUM_CLASSES=at_least(1),
        NUM_PROPOSALS=at_least(1),
        START=one_of("whole", "tiles"),
        PILOTS=between(0, 100),
        NHEADS=at_least(1),
        DROPOUT=below_one,
        DIM_FEEDFORWARD=at_least(1),
        HIDDEN_DIM=at_least(1),
        NUM_CLS=at_least(0),
        NUM_REG=at_least(0),
        NUM_MASK=at_least(0),
        NUM_HEADS=at_least(1),
        NUM_DYNAMIC=only(2, "dynamic attention has 2 matrices"),
        DIM_DYNAMIC=at_least(1),
        ROI_ATTENTION=one_of("dynamic", "multihead"),
        MASK_DIM=at_least(1),
        MASK_FEAT_DIM=at_least(1),
        MASK_SIZE=or_none(whole(1)),
        FIT_MAX_MASKS=at_least(1),
        FIT_EPOCHS=at_least(1),
        MASK_COST=one_of("cosine", "l1", "dice"),
        MASK_LOSS=one_of("both", "l2", "dice"),
        CLASS_WEIGHT=at_least(0),
        GIOU_WEIGHT=at_least(0),
        L1_WEIGHT=at_least(0),
        MASK_WEIGHT=or_none(at_least(0)),
        FEAT_WEIGHT=at_least(0),
        ALPHA=between(0, 1),
        GAMMA=at_least(0),
        PRIOR_PROB=probability,
    ),
}

# Defaults of the keys that are None: version 1, version 2.
_BY_VERSION = {"MASK_SIZE": (28, 112), "MASK_WEIGHT": (2.0, 5.0)}


def add_istr_config(cfg: CfgNode) -> None:
    """Add MODEL.ISTR, in place."""
    node = CfgNode()
    node.NUM_CLASSES = 80  # foreground classes
    node.NUM_PROPOSALS = 300  # number of queries, N
    # First boxes: "whole", the whole image for each query (the authors'), or "tiles", on grids of several sizes.
    node.START = "whole"
    # In training, each object also has so many further queries, which start at noised boxes of it and have all losses.
    node.PILOTS = 0
    node.NHEADS = 8  # attention heads of the self-attention
    node.DROPOUT = 0.0  # dropout rate
    node.DIM_FEEDFORWARD = 2048  # hidden channels of the feed-forward layers
    node.ACTIVATION = "relu"  # accepted for the authors' files: the activation is always ELU
    node.HIDDEN_DIM = 256  # channels of a query and of the pyramid
    node.NUM_CLS = 3  # layers of the class branch
    node.NUM_REG = 3  # layers of the box branch
    node.NUM_MASK = 3  # layers of the mask branch, version 1 only
    node.NUM_HEADS = 6  # refinement heads, one after another
    node.NUM_DYNAMIC = 2  # matrices of the dynamic attention
    node.DIM_DYNAMIC = 64  # inner channels of the dynamic attention
    node.ROI_ATTENTION = "dynamic"  # how a query reads its RoI feature: dynamic or multihead (the paper's ablation)

    # The mask embedding. Without an encoding method the config is version 1.
    node.MASK_ENCODING_METHOD = ""  # PCA, DCT or AE: version 2
    node.EMBEDDING = ""  # another name in the MASK_EMBEDDING registry, such as RawMask; does not change the version
    node.MASK_DIM = 60  # length of a code in version 1
    node.MASK_FEAT_DIM = 256  # length of a code in version 2
    node.MASK_SIZE = None  # side of the encoded masks; None: 28 in version 1, 112 in version 2
    node.PATH_COMPONENTS = ""  # file of the fitted embedding; empty: fit it when training starts
    node.MASK_EMBEDDING_FILE = ""  # another name of PATH_COMPONENTS
    node.FIT_MAX_MASKS = 10000  # number of masks to fit it on
    node.FIT_EPOCHS = 30  # epochs of the fit, AE only
    node.ENCODE_NOISE = False  # PCA: squeeze the masks by new random values at each encoding (the authors' way)
    node.FREEZE_ENCODER_BN = True  # AE: False lets the frozen encoder's batch norm drift (the authors' way)

    # Matching and losses.
    node.MASK_COST = "cosine"  # how codes are compared in the matching: cosine or l1; dice: the decoded masks
    node.MASK_LOSS = "both"  # both, l2 (only the codes) or dice (only the decoded masks)
    node.CLASS_WEIGHT = 2.0  # weight of the class cost and loss
    node.GIOU_WEIGHT = 2.0  # weight of the GIoU cost and loss
    node.L1_WEIGHT = 5.0  # weight of the L1 box cost and loss
    # Weight of dice, in version 1 also of the codes' cost and loss; None: 2 in version 1, 5 in version 2.
    node.MASK_WEIGHT = None
    node.FEAT_WEIGHT = 1.0  # weight of the codes' cost and loss in version 2
    node.DEEP_SUPERVISION = True  # every head has losses; False: only the last one
    node.NO_OBJECT_WEIGHT = 0.1  # accepted for the authors' files: the focal loss needs none
    node.ALPHA = 0.25  # of the focal loss
    node.GAMMA = 2.0  # of the focal loss
    node.PRIOR_PROB = 0.01  # initial foreground probability
    node.IOU_THRESHOLDS = [0.5]  # accepted for the authors' files: matching is one to one
    node.IOU_LABELS = [0, 1]  # accepted for the authors' files: matching is one to one
    cfg.MODEL.ISTR = node


def istr_version(cfg: CfgNode) -> int:
    """1 if MODEL.ISTR.MASK_ENCODING_METHOD is empty, else 2."""
    return 2 if cfg.MODEL.ISTR.MASK_ENCODING_METHOD else 1


def istr_value(cfg: CfgNode, key: str) -> Any:
    """MODEL.ISTR.<key>, or the default of the config's version if it is None."""
    value = cfg.MODEL.ISTR[key]
    return _BY_VERSION[key][istr_version(cfg) - 1] if value is None else value


def check_istr_config(cfg: CfgNode) -> None:
    """Raise ConfigError for invalid values."""
    check_values(cfg, ISTR_VALUES)
    method = cfg.MODEL.META_ARCHITECTURE == "ISTR"
    if method:
        pooler = cfg.MODEL.ROI_BOX_HEAD
        require(
            pooler.POOLER_TYPE == "ROIAlignV2" and pooler.POOLER_SAMPLING_RATIO >= 1,
            "ISTR needs MODEL.ROI_BOX_HEAD.POOLER_TYPE ROIAlignV2 and POOLER_SAMPLING_RATIO 1 or more; got "
            f"{pooler.POOLER_TYPE} and {pooler.POOLER_SAMPLING_RATIO}.",
        )
    heads = method or cfg.MODEL.ROI_HEADS.NAME == "ISTRHeads"
    if heads and not method:
        start = cfg.MODEL.ISTR.START
        require(start == "whole", f"MODEL.ISTR.START is {start}; ISTRHeads has no other than whole.")
        pilots = cfg.MODEL.ISTR.PILOTS
        require(pilots == 0, f"MODEL.ISTR.PILOTS is {pilots}; ISTRHeads has none: set it to 0.")
    if heads:
        _check_heads(cfg)
    if heads or cfg.MODEL.ROI_MASK_HEAD.NAME == "MaskEmbeddingHead":
        _check_embedding(cfg)


def _check_heads(cfg: CfgNode) -> None:
    node = cfg.MODEL.ISTR
    require(
        cfg.TEST.DETECTIONS_PER_IMAGE >= 1,
        f"TEST.DETECTIONS_PER_IMAGE is {cfg.TEST.DETECTIONS_PER_IMAGE}; ISTR keeps at least 1.",
    )
    require(
        node.HIDDEN_DIM % node.NHEADS == 0,
        f"MODEL.ISTR.HIDDEN_DIM is {node.HIDDEN_DIM}; it must be a multiple of MODEL.ISTR.NHEADS, {node.NHEADS}.",
    )
    if node.MASK_ENCODING_METHOD == "AE":
        require(
            node.MASK_COST != "dice",
            "MODEL.ISTR.MASK_COST dice decodes the mask of every query, which is too slow with AE; use cosine or l1.",
        )
        require(
            node.MASK_LOSS != "l2",
            "MODEL.ISTR.MASK_LOSS l2 does not train the decoder of AE; use both or dice.",
        )


def _check_embedding(cfg: CfgNode) -> None:
    node, size = cfg.MODEL.ISTR, istr_value(cfg, "MASK_SIZE")
    name = node.EMBEDDING or node.MASK_ENCODING_METHOD
    key = "MASK_DIM" if istr_version(cfg) == 1 else "MASK_FEAT_DIM"
    require(
        name == "RawMask" or node[key] <= size * size,
        f"MODEL.ISTR.{key} is {node[key]}; a code of a {size} x {size} mask has 1 to {size * size} numbers.",
    )
    require(
        name != "AE" or size == 112,
        f"MODEL.ISTR.MASK_SIZE is {size}; the AE embedding needs 112.",
    )
    require(
        not (node.PATH_COMPONENTS and node.MASK_EMBEDDING_FILE) or node.PATH_COMPONENTS == node.MASK_EMBEDDING_FILE,
        "MODEL.ISTR.PATH_COMPONENTS and MASK_EMBEDDING_FILE name different files; set one of them.",
    )
