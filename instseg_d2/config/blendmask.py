"""Keys of BlendMask, with AdelaiDet's names and defaults, and the paper's ablations."""

import math

from detectron2.config import CfgNode

from .values import above, at_least, check_values, each, norm, one_of, require, section, words

BLENDMASK_VALUES = {
    **section(
        "MODEL.BLENDMASK",
        ATTN_SIZE=at_least(1),
        BOTTOM_RESOLUTION=at_least(1),
        TOP_INTERP=one_of("bilinear", "nearest"),
        BOTTOM_INTERP=one_of("bilinear", "nearest"),
        MERGING=one_of("blender", "yolact", "fcis"),
        POOLER_TYPE=one_of("ROIAlignV2", "ROIAlign"),
        POOLER_SAMPLING_RATIO=at_least(0),
        POOLER_SCALES=each(above(0), count=1),  # the bases are one map
        INSTANCE_LOSS_WEIGHT=at_least(0),
    ),
    **section(
        "MODEL.BASIS_MODULE",
        NUM_BASES=at_least(1),
        NUM_CONVS=at_least(0),
        CONVS_DIM=at_least(1),
        IN_FEATURES=words(min_length=1),
        NORM=norm,
        COMMON_STRIDE=at_least(1),
        NUM_CLASSES=at_least(1),
        LOSS_WEIGHT=at_least(0),
    ),
    "MODEL.BLEND_MASK_HEAD.ATTN_CONVS": at_least(0),
}


def add_blendmask_config(cfg: CfgNode) -> None:
    """Add MODEL.BLENDMASK, MODEL.BASIS_MODULE and MODEL.BLEND_MASK_HEAD, in place."""
    node = CfgNode()
    node.ATTN_SIZE = 14  # M: side of an attention map
    node.TOP_INTERP = "bilinear"  # resizes the attention to R x R: bilinear or nearest
    node.BOTTOM_RESOLUTION = 56  # R: side of an instance's mask before it is resized
    node.POOLER_TYPE = "ROIAlignV2"  # crops the bases: ROIAlignV2 or ROIAlign
    node.POOLER_SAMPLING_RATIO = 1  # samples of a cell along each side; 0: by its size
    node.POOLER_SCALES = (0.25,)  # 1 / stride of the bases
    # Interpolation of the bases inside the box: bilinear (RoIAlign) or nearest (the paper's ablation).
    node.BOTTOM_INTERP = "bilinear"
    # How bases and attention are combined: blender, yolact (one weight per basis, sigmoid, crop) or fcis
    # (position-sensitive, NUM_BASES = k * k, no attention).
    node.MERGING = "blender"
    node.INSTANCE_LOSS_WEIGHT = 1.0  # weight of the mask loss
    node.VISUALIZE = False  # accepted for AdelaiDet's files; demo.py --explain draws
    cfg.MODEL.BLENDMASK = node

    node = CfgNode()
    node.NAME = "ProtoNet"  # ProtoNet or DeepLabV3Plus
    node.NUM_BASES = 4  # K: number of bases
    node.LOSS_ON = False  # semantic auxiliary loss
    node.ANN_SET = "coco"  # accepted for AdelaiDet's files: the target is made from the instance masks
    node.CONVS_DIM = 128  # channels of the module
    node.IN_FEATURES = ["p3", "p4", "p5"]  # maps that the module sees, finest first
    node.NORM = "SyncBN"  # GN, BN, SyncBN, another of Detectron2's norms, or empty
    node.NUM_CONVS = 3  # 3x3 convolutions of ProtoNet's tower
    node.COMMON_STRIDE = 8  # stride of the semantic logits, which LOSS_ON needs
    node.NUM_CLASSES = 80  # foreground classes of the semantic loss
    node.LOSS_WEIGHT = 0.3  # weight of the semantic loss
    cfg.MODEL.BASIS_MODULE = node

    # Only for BlendMaskHead, which also reads the two nodes above.
    node = CfgNode()
    node.ATTN_CONVS = 0  # 3x3 convolutions (GN, ReLU) of the pooled features before the last one
    cfg.MODEL.BLEND_MASK_HEAD = node


def check_blendmask_config(cfg: CfgNode) -> None:
    """Raise ConfigError for invalid values."""
    check_values(cfg, BLENDMASK_VALUES)
    head = cfg.MODEL.ROI_MASK_HEAD.NAME == "BlendMaskHead"
    if not head and cfg.MODEL.META_ARCHITECTURE != "BlendMask":
        return
    node, bases = cfg.MODEL.BLENDMASK, cfg.MODEL.BASIS_MODULE
    require(
        node.MERGING != "fcis" or math.isqrt(bases.NUM_BASES) ** 2 == bases.NUM_BASES,
        f"MODEL.BLENDMASK.MERGING fcis needs a square MODEL.BASIS_MODULE.NUM_BASES; got {bases.NUM_BASES}.",
    )
    require(
        bases.NAME != "DeepLabV3Plus" or len(bases.IN_FEATURES) == 2,
        "MODEL.BASIS_MODULE.IN_FEATURES of DeepLabV3Plus takes two levels, such as p3 and p5; got "
        f"{', '.join(bases.IN_FEATURES)}.",
    )
    require(
        not (head and bases.LOSS_ON),
        "MODEL.BASIS_MODULE.LOSS_ON must be False with BlendMaskHead: a mask head does not see the whole ground truth "
        "of an image.",
    )
