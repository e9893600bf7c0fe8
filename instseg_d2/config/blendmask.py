"""Keys of BlendMask, with AdelaiDet's names and defaults, and the paper's ablations."""

from detectron2.config import CfgNode


def add_blendmask_config(cfg: CfgNode) -> None:
    """Add MODEL.BLENDMASK, MODEL.BASIS_MODULE and MODEL.BLEND_MASK_HEAD, in place."""
    node = CfgNode()
    node.ATTN_SIZE = 14  # M
    node.TOP_INTERP = "bilinear"  # attention to R x R: bilinear or nearest
    node.BOTTOM_RESOLUTION = 56  # R
    node.POOLER_TYPE = "ROIAlignV2"
    node.POOLER_SAMPLING_RATIO = 1
    node.POOLER_SCALES = (0.25,)
    # Interpolation of the bases inside the box: bilinear (RoIAlign) or nearest (the paper's ablation).
    node.BOTTOM_INTERP = "bilinear"
    # How bases and attention meet: blender, yolact (one weight a basis, sigmoid, crop) or fcis
    # (position-sensitive, NUM_BASES = k * k, no attention).
    node.MERGING = "blender"
    node.INSTANCE_LOSS_WEIGHT = 1.0
    node.VISUALIZE = False  # accepted for AdelaiDet's files; demo.py --explain draws
    cfg.MODEL.BLENDMASK = node

    node = CfgNode()
    node.NAME = "ProtoNet"  # ProtoNet or DeepLabV3Plus
    node.NUM_BASES = 4  # K
    node.LOSS_ON = False  # semantic auxiliary loss
    node.ANN_SET = "coco"  # accepted for AdelaiDet's files: the target is made from the instance masks
    node.CONVS_DIM = 128
    node.IN_FEATURES = ["p3", "p4", "p5"]
    node.NORM = "SyncBN"
    node.NUM_CONVS = 3
    node.COMMON_STRIDE = 8
    node.NUM_CLASSES = 80
    node.LOSS_WEIGHT = 0.3
    cfg.MODEL.BASIS_MODULE = node

    # Of BlendMaskHead alone; it reads the two nodes above as well.
    node = CfgNode()
    node.ATTN_CONVS = 0  # 3x3 convolutions (GN, ReLU) of the pooled features before that to the attention
    cfg.MODEL.BLEND_MASK_HEAD = node
