"""Keys of the backbones that come from timm."""

from detectron2.config import CfgNode


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
