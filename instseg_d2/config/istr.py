"""Keys of ISTR, with the authors' names and defaults; which of its two versions a config means."""

from typing import Any

from detectron2.config import CfgNode

# Values where a config says None: version 1, version 2.
_BY_VERSION = {"MASK_SIZE": (28, 112), "MASK_WEIGHT": (2.0, 5.0)}


def add_istr_config(cfg: CfgNode) -> None:
    """Add MODEL.ISTR, MODEL.SWINT and LSJ_AUG, in place."""
    node = CfgNode()
    node.NUM_CLASSES = 80
    node.NUM_PROPOSALS = 300  # N
    node.NHEADS = 8  # of the self-attention
    node.DROPOUT = 0.0
    node.DIM_FEEDFORWARD = 2048
    node.ACTIVATION = "relu"  # accepted for the authors' files: the activation is always ELU
    node.HIDDEN_DIM = 256
    node.NUM_CLS = 3  # layers of the class, box and mask branches
    node.NUM_REG = 3
    node.NUM_MASK = 3  # version 1 only
    node.NUM_HEADS = 6
    node.NUM_DYNAMIC = 2
    node.DIM_DYNAMIC = 64
    node.ROI_ATTENTION = "dynamic"  # or multihead: how a query reads its RoI feature (the paper's ablation)

    # The mask embedding. Version 1 is a config without an encoding method.
    node.MASK_ENCODING_METHOD = ""  # version 2: PCA, DCT or AE
    node.EMBEDDING = ""  # another name of the MASK_EMBEDDING registry, such as RawMask; the version stays
    node.MASK_DIM = 60  # numbers of a code in version 1
    node.MASK_FEAT_DIM = 256  # and in version 2
    node.MASK_SIZE = None  # side of the masks that are encoded; None: 28 in version 1, 112 in version 2
    node.PATH_COMPONENTS = ""  # the fitted embedding; empty: it is fitted when training starts
    node.MASK_EMBEDDING_FILE = ""  # another name of PATH_COMPONENTS
    node.FIT_MAX_MASKS = 10000  # for the fit when training starts
    node.FIT_EPOCHS = 30  # of that fit, AE only
    node.ENCODE_NOISE = False  # PCA: squeeze the masks by random values, anew at each encoding (the authors' way)
    node.FREEZE_ENCODER_BN = True  # AE: False lets the frozen encoder's batch norm drift (the authors' way)

    # Matching and losses.
    node.MASK_COST = "cosine"  # or l1, dice
    node.MASK_LOSS = "both"  # or l2 (the codes alone), dice (the decoded masks alone)
    node.CLASS_WEIGHT = 2.0
    node.GIOU_WEIGHT = 2.0
    node.L1_WEIGHT = 5.0
    # Of dice, in version 1 also of the codes' cost and loss; None: 2 in version 1, 5 in version 2.
    node.MASK_WEIGHT = None
    node.FEAT_WEIGHT = 1.0  # of the codes' cost and loss in version 2
    node.DEEP_SUPERVISION = True
    node.NO_OBJECT_WEIGHT = 0.1  # accepted for the authors' files: the focal loss needs none
    node.ALPHA = 0.25
    node.GAMMA = 2.0
    node.PRIOR_PROB = 0.01
    node.IOU_THRESHOLDS = [0.5]  # accepted for the authors' files, as IOU_LABELS: matching is one to one
    node.IOU_LABELS = [0, 1]
    cfg.MODEL.ISTR = node

    node = CfgNode()
    node.EMBED_DIM = 96
    node.OUT_FEATURES = ["stage2", "stage3", "stage4", "stage5"]
    node.DEPTHS = [2, 2, 6, 2]
    node.NUM_HEADS = [3, 6, 12, 24]
    node.WINDOW_SIZE = 7
    node.MLP_RATIO = 4
    node.DROP_PATH_RATE = 0.2
    node.APE = False
    cfg.MODEL.SWINT = node

    # Large-scale jitter: scales 0.1 to 2 of 1024, a crop of 1024 x 1024.
    cfg.LSJ_AUG = False


def istr_version(cfg: CfgNode) -> int:
    """1 where MODEL.ISTR.MASK_ENCODING_METHOD is empty, else 2."""
    return 2 if cfg.MODEL.ISTR.MASK_ENCODING_METHOD else 1


def istr_value(cfg: CfgNode, key: str) -> Any:
    """MODEL.ISTR.<key>, or the default of the config's version where it is None."""
    value = cfg.MODEL.ISTR[key]
    return _BY_VERSION[key][istr_version(cfg) - 1] if value is None else value
