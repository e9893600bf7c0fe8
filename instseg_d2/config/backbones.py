"""Keys of the backbones."""

from detectron2.config import CfgNode

from .values import above, at_least, below_one, check_values, each, one_of, only, require, section, whole, words

_NORM = one_of("FrozenBN", "BN", "")

BACKBONE_VALUES = {
    **section("MODEL.TIMM", NORM=_NORM, OUT_FEATURES=words(min_length=1)),
    **section("MODEL.CSPNET", NORM=_NORM, OUT_FEATURES=words(min_length=1)),
    "MODEL.PVT.OUT_FEATURES": words(min_length=1),
    **section(
        "MODEL.SWINT",
        EMBED_DIM=at_least(1),
        OUT_FEATURES=words(min_length=1),
        DEPTHS=each(whole(1)),
        NUM_HEADS=each(whole(1)),
        WINDOW_SIZE=at_least(1),
        MLP_RATIO=above(0),
        DROP_PATH_RATE=below_one,
        APE=only(False, "there are no absolute position embeddings"),
    ),
    "MODEL.RESNETS.DEFORM_INTERVAL": at_least(1),
    "MODEL.RESNETS.OUTPUT_STRIDE": one_of(4, 8, 16, 32),
    "MODEL.DLA.CONV_BODY": one_of("DLA34"),
    "MODEL.DLA.OUT_FEATURES": words(min_length=1),
    "MODEL.DLA.NORM": one_of("FrozenBN", "SyncBN", "BN", ""),
    "MODEL.MOBILENET": only(False, "there is no MobileNet"),
    "MODEL.BACKBONE.ANTI_ALIAS": only(False, "there is no anti-aliased ResNet"),
}


def add_backbone_config(cfg: CfgNode) -> None:
    """Add MODEL.TIMM, CSPNET, PVT, SWINT and DLA, and some keys to Detectron2's nodes, in place."""
    cfg.MODEL.RESNETS.DEFORM_INTERVAL = 1  # every n-th block of a stage with DEFORM_ON_PER_STAGE is deformable
    # For build_dilated_resnet_backbone: beyond this stride, stages are dilated instead of strided.
    cfg.MODEL.RESNETS.OUTPUT_STRIDE = 8
    cfg.MODEL.MOBILENET = False  # accepted for AdelaiDet's files; True is refused
    cfg.MODEL.BACKBONE.ANTI_ALIAS = False  # accepted for AdelaiDet's files; True is refused

    node = CfgNode()
    node.NAME = "resnet50d"  # any timm network that supports features_only
    node.OUT_FEATURES = ["res3", "res4", "res5"]  # resN or pN is the map of stride 2 ** N
    node.NORM = "FrozenBN"  # for batch norms: FrozenBN; BN or empty: trained
    node.PRETRAINED = False  # True: timm downloads its weights if MODEL.WEIGHTS is empty
    cfg.MODEL.TIMM = node

    node = CfgNode()
    node.NAME = "darknet53"  # darknet53 or cspdarknet53
    node.NORM = ""  # for batch norms: FrozenBN; BN or empty: trained
    node.OUT_FEATURES = ["csp1", "csp2", "csp3", "csp4"]  # maps to use, of strides 4 to 32
    cfg.MODEL.CSPNET = node

    node = CfgNode()
    node.NAME = "b1"  # b0 to b5
    node.OUT_FEATURES = ["p2", "p3", "p4"]  # maps to use, of strides 8 to 32
    node.LINEAR = False  # True: b2 with linear attention, whatever NAME says
    cfg.MODEL.PVT = node

    node = CfgNode()
    node.EMBED_DIM = 96  # channels of the first stage; each next one has twice as many
    node.OUT_FEATURES = ["stage2", "stage3", "stage4", "stage5"]  # stageN is the map of stride 2 ** N
    node.DEPTHS = [2, 2, 6, 2]  # blocks of each stage
    node.NUM_HEADS = [3, 6, 12, 24]  # attention heads of each stage
    node.WINDOW_SIZE = 7  # side of an attention window
    node.MLP_RATIO = 4  # hidden channels of a block's MLP, as a multiple of its channels
    node.DROP_PATH_RATE = 0.2  # stochastic depth: how often the last block is skipped in training
    node.APE = False  # accepted for the authors' files; True is refused
    cfg.MODEL.SWINT = node

    node = CfgNode()
    node.CONV_BODY = "DLA34"  # only DLA34
    node.OUT_FEATURES = ["stage2", "stage3", "stage4", "stage5"]  # stageN or levelN is the map of stride 2 ** N
    node.NORM = "FrozenBN"  # FrozenBN; SyncBN or BN: trained
    cfg.MODEL.DLA = node


def check_backbone_config(cfg: CfgNode) -> None:
    """Raise ConfigError for invalid values."""
    check_values(cfg, BACKBONE_VALUES)
    node = cfg.MODEL.RESNETS
    require(
        node.DEPTH >= 50 or not any(node.DEFORM_ON_PER_STAGE),
        f"MODEL.RESNETS.DEFORM_ON_PER_STAGE needs bottleneck blocks: DEPTH 50, 101 or 152; got {node.DEPTH}.",
    )
    require(
        cfg.MODEL.BACKBONE.NAME != "build_resnet_vd_backbone" or _NORM.holds(node.NORM),
        f"MODEL.RESNETS.NORM is {node.NORM!r}; with build_resnet_vd_backbone it must be {_NORM.text}.",
    )
    if cfg.MODEL.BACKBONE.NAME == "build_dilated_resnet_backbone":
        require(
            node.RES5_DILATION == 1 and not any(node.DEFORM_ON_PER_STAGE),
            "build_dilated_resnet_backbone sets the dilation itself: leave MODEL.RESNETS.RES5_DILATION at 1 and "
            "DEFORM_ON_PER_STAGE at False.",
        )
