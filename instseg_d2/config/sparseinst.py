"""Keys of SparseInst, with the authors' names and defaults."""

from detectron2.config import CfgNode


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
