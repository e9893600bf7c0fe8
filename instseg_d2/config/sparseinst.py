"""Keys of SparseInst, with the authors' names and defaults."""

from detectron2.config import CfgNode

from .values import at_least, between, check_values, each, one_of, only, require, section, words

SPARSEINST_VALUES = {
    **section(
        "MODEL.SPARSE_INST",
        CLS_THRESHOLD=between(0, 1),
        MASK_THRESHOLD=between(0, 1),
        MAX_DETECTIONS=at_least(1),
    ),
    **section(
        "MODEL.SPARSE_INST.ENCODER",
        NORM=only("", "the encoder has no norm"),
        IN_FEATURES=words(min_length=1),
        NUM_CHANNELS=at_least(4),
    ),
    **section(
        "MODEL.SPARSE_INST.DECODER",
        NUM_MASKS=at_least(1),
        NUM_CLASSES=at_least(1),
        KERNEL_DIM=at_least(1),
        SCALE_FACTOR=at_least(0.25),
        GROUPS=at_least(1),
    ),
    **section("MODEL.SPARSE_INST.DECODER.INST", DIM=at_least(1), CONVS=at_least(1)),
    **section("MODEL.SPARSE_INST.DECODER.MASK", DIM=at_least(1), CONVS=at_least(1)),
    **section(
        "MODEL.SPARSE_INST.LOSS",
        NAME=one_of("SparseInstCriterion"),
        ITEMS=each(one_of("labels", "masks")),
        CLASS_WEIGHT=at_least(0),
        MASK_PIXEL_WEIGHT=at_least(0),
        MASK_DICE_WEIGHT=at_least(0),
        OBJECTNESS_WEIGHT=at_least(0),
    ),
    **section("MODEL.SPARSE_INST.MATCHER", NAME=one_of("SparseInstMatcher"), ALPHA=at_least(0), BETA=at_least(0)),
}


def add_sparseinst_config(cfg: CfgNode) -> None:
    """Add MODEL.SPARSE_INST, in place."""
    node = CfgNode()
    node.CLS_THRESHOLD = 0.005  # on sqrt(class * objectness), before rescoring
    node.MASK_THRESHOLD = 0.45
    node.MAX_DETECTIONS = 100
    node.DATASET_MAPPER = "SparseInstDatasetMapper"  # accepted for the authors' files: one mapper serves all methods

    node.ENCODER = CfgNode()
    node.ENCODER.NAME = "InstanceContextEncoder"
    node.ENCODER.NORM = ""  # accepted for the authors' files: the encoder has no norm
    node.ENCODER.IN_FEATURES = ["res3", "res4", "res5"]
    node.ENCODER.NUM_CHANNELS = 256

    node.DECODER = CfgNode()
    node.DECODER.NAME = "BaseIAMDecoder"  # or GroupIAMDecoder, GroupIAMSoftDecoder
    node.DECODER.NUM_MASKS = 100  # N
    node.DECODER.NUM_CLASSES = 80
    node.DECODER.KERNEL_DIM = 128
    node.DECODER.SCALE_FACTOR = 2.0  # from the features to the masks
    node.DECODER.OUTPUT_IAM = False  # accepted for the authors' files; demo.py --explain draws the maps
    node.DECODER.GROUPS = 4
    node.DECODER.INST = CfgNode({"DIM": 256, "CONVS": 4})
    node.DECODER.MASK = CfgNode({"DIM": 256, "CONVS": 4})

    node.LOSS = CfgNode()
    node.LOSS.NAME = "SparseInstCriterion"
    node.LOSS.ITEMS = ("labels", "masks")
    node.LOSS.CLASS_WEIGHT = 2.0
    node.LOSS.MASK_PIXEL_WEIGHT = 5.0
    node.LOSS.MASK_DICE_WEIGHT = 2.0
    node.LOSS.OBJECTNESS_WEIGHT = 1.0
    node.MATCHER = CfgNode({"NAME": "SparseInstMatcher", "ALPHA": 0.8, "BETA": 0.2})
    cfg.MODEL.SPARSE_INST = node


def check_sparseinst_config(cfg: CfgNode) -> None:
    """Raise ConfigError for invalid values."""
    check_values(cfg, SPARSEINST_VALUES)
    if cfg.MODEL.META_ARCHITECTURE != "SparseInst" and cfg.MODEL.ROI_HEADS.NAME != "SparseInstHeads":
        return
    node = cfg.MODEL.SPARSE_INST.DECODER
    require(
        not node.NAME.startswith("Group") or node.INST.DIM % node.GROUPS == 0,
        f"MODEL.SPARSE_INST.DECODER.INST.DIM is {node.INST.DIM}; it must be a multiple of GROUPS, {node.GROUPS}.",
    )
