"""Keys of SparseInst, with the authors' names and defaults."""

from detectron2.config import CfgNode

from .values import at_least, between, check_values, each, one_of, require, section, words

KNOTS = 6  # of the piecewise linear functions of a coordinate, in the tiled start

SPARSEINST_VALUES = {
    **section(
        "MODEL.SPARSE_INST",
        CLS_THRESHOLD=between(0, 1),
        MASK_THRESHOLD=between(0, 1),
        MAX_DETECTIONS=at_least(1),
    ),
    **section(
        "MODEL.SPARSE_INST.ENCODER",
        NORM=one_of("", "BN", "SyncBN"),
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
        NORM=one_of("", "BN", "SyncBN"),
        START=one_of("random", "tiles"),
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
        MAP_WEIGHT=at_least(0),
        PILOTS=at_least(0),
    ),
    **section(
        "MODEL.SPARSE_INST.MATCHER",
        NAME=one_of("SparseInstMatcher"),
        ALPHA=at_least(0),
        BETA=at_least(0),
        SIGMA=at_least(0),
    ),
}


def add_sparseinst_config(cfg: CfgNode) -> None:
    """Add MODEL.SPARSE_INST, in place."""
    node = CfgNode()
    node.CLS_THRESHOLD = 0.005  # minimum of sqrt(class * objectness), before rescoring
    node.MASK_THRESHOLD = 0.45  # probability from which a pixel belongs to the mask
    node.MAX_DETECTIONS = 100  # detections kept per image
    node.DATASET_MAPPER = "SparseInstDatasetMapper"  # accepted for the authors' files: one mapper serves all methods

    node.ENCODER = CfgNode()
    node.ENCODER.NAME = "InstanceContextEncoder"  # a name in the SPARSE_INST_ENCODER registry
    node.ENCODER.NORM = ""  # norm after the encoder's convolutions: "" (the authors'), BN or SyncBN
    node.ENCODER.IN_FEATURES = ["res3", "res4", "res5"]  # maps that the encoder sees, finest first
    node.ENCODER.NUM_CHANNELS = 256  # channels of the encoder's map

    node.DECODER = CfgNode()
    node.DECODER.NORM = ""  # norm after the 3x3 convolutions of both branches: "" (the authors'), BN or SyncBN
    node.DECODER.NAME = "BaseIAMDecoder"  # BaseIAMDecoder, GroupIAMDecoder or GroupIAMSoftDecoder
    # First weights: "random" (the authors'), or "tiles": each slot's activation map starts as a spot at its own place.
    node.DECODER.START = "random"
    node.DECODER.NUM_MASKS = 100  # instance activation maps, N: at most so many objects in an image
    node.DECODER.NUM_CLASSES = 80  # foreground classes
    node.DECODER.KERNEL_DIM = 128  # channels of the mask features and of an instance's kernel
    node.DECODER.SCALE_FACTOR = 2.0  # how much finer the masks are than the features
    node.DECODER.OUTPUT_IAM = False  # accepted for the authors' files; demo.py --explain draws the maps
    node.DECODER.GROUPS = 4  # groups of the GroupIAM decoders
    node.DECODER.INST = CfgNode()
    node.DECODER.INST.DIM = 256  # channels of the instance branch
    node.DECODER.INST.CONVS = 4  # its 3x3 convolutions
    node.DECODER.MASK = CfgNode()
    node.DECODER.MASK.DIM = 256  # channels of the mask branch
    node.DECODER.MASK.CONVS = 4  # its 3x3 convolutions

    node.LOSS = CfgNode()
    node.LOSS.NAME = "SparseInstCriterion"  # SparseInstCriterion
    node.LOSS.ITEMS = ("labels", "masks")  # which losses: labels (the class loss), masks (the other three)
    node.LOSS.CLASS_WEIGHT = 2.0  # weight of the focal class loss
    node.LOSS.MASK_PIXEL_WEIGHT = 5.0  # weight of the masks' binary cross-entropy
    node.LOSS.MASK_DICE_WEIGHT = 2.0  # weight of the masks' dice loss
    node.LOSS.OBJECTNESS_WEIGHT = 1.0  # weight of the objectness loss (the IoU of the mask)
    node.LOSS.MAP_WEIGHT = 0.0  # weight of -log of the share of a matched slot's activation map inside its object
    # For each object, so many maps made from the ground truth (spots in the object) have all losses but MAP, too.
    node.LOSS.PILOTS = 0
    node.MATCHER = CfgNode()
    node.MATCHER.NAME = "SparseInstMatcher"  # SparseInstMatcher
    node.MATCHER.ALPHA = 0.8  # exponent of dice in the score of a pair
    node.MATCHER.BETA = 0.2  # exponent of the class probability
    # With DECODER.START tiles: slots far from an object score less, by a Gaussian of this standard deviation, in
    # distances between slots; 0: as they are.
    node.MATCHER.SIGMA = 0.0
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
    channels = node.INST.DIM // (node.GROUPS if node.NAME.startswith("Group") else 1)
    require(
        node.START != "tiles" or channels >= 2 * KNOTS,
        f"MODEL.SPARSE_INST.DECODER.START tiles needs {2 * KNOTS} channels in a group, for the coordinates; "
        f"INST.DIM / GROUPS is {channels}.",
    )
    matcher = cfg.MODEL.SPARSE_INST.MATCHER
    require(
        not matcher.SIGMA or node.START == "tiles",
        f"MODEL.SPARSE_INST.MATCHER.SIGMA is {matcher.SIGMA}; it needs the slots' places: set DECODER.START tiles.",
    )
