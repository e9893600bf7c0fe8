"""Keys of the backbones that come from timm."""

from detectron2.config import CfgNode

from .values import check_values, one_of, require, section, words

_NORM = one_of("FrozenBN", "BN", "")

BACKBONE_VALUES = {
    **section("MODEL.TIMM", NORM=_NORM, OUT_FEATURES=words(fewest=1)),
    **section("MODEL.CSPNET", NORM=_NORM, OUT_FEATURES=words(fewest=1)),
    "MODEL.PVT.OUT_FEATURES": words(fewest=1),
}


def add_backbone_config(cfg: CfgNode) -> None:
    """Add MODEL.TIMM, MODEL.CSPNET and MODEL.PVT, in place."""
    node = CfgNode()
    node.NAME = "resnet50d"  # any network of timm that has features_only
    node.OUT_FEATURES = ["res3", "res4", "res5"]  # resN or pN is the map of stride 2 ** N
    node.NORM = "FrozenBN"  # of batch norms: FrozenBN; BN or empty: trained
    node.PRETRAINED = False  # timm's weights, downloaded by timm, where MODEL.WEIGHTS is empty
    cfg.MODEL.TIMM = node

    node = CfgNode()
    node.NAME = "darknet53"  # or cspdarknet53
    node.NORM = ""  # as above
    node.OUT_FEATURES = ["csp1", "csp2", "csp3", "csp4"]  # strides 4 to 32
    cfg.MODEL.CSPNET = node

    node = CfgNode()
    node.NAME = "b1"  # b0 to b5
    node.OUT_FEATURES = ["p2", "p3", "p4"]  # strides 8 to 32
    node.LINEAR = False  # True: b2 with linear attention, whatever NAME says
    cfg.MODEL.PVT = node


def check_backbone_config(cfg: CfgNode) -> None:
    """Refuse values that cannot be used."""
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
