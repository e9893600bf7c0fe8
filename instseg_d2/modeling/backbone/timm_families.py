"""timm's ResNet-D, CSPDarkNet, DarkNet and PVT, each with its own config keys."""

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY

from ...layers import SelfOffsetDeformConv
from .timm import TimmBackbone, strides_of


@BACKBONE_REGISTRY.register()
def build_resnet_vd_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """
    ResNet-D (He et al., arXiv 1812.01187) from MODEL.RESNETS: DEPTH, NORM, OUT_FEATURES and the DEFORM_* keys.

    timm's resnet50d and its variants are this network: three 3x3 convolutions in the stem, stride in the 3x3, average
    pooling before the shortcut's 1x1. In the stages of DEFORM_ON_PER_STAGE, every DEFORM_INTERVAL-th block, starting
    with the first, gets a deformable 3x3 convolution.
    """
    node = cfg.MODEL.RESNETS
    backbone = TimmBackbone(
        f"resnet{node.DEPTH}d",
        strides_of(node.OUT_FEATURES, ("res",), 0, "MODEL.RESNETS.OUT_FEATURES"),
        norm=node.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_chans=input_shape.channels,
    )
    for i, deformable in enumerate(node.DEFORM_ON_PER_STAGE):
        stage = f"layer{i + 1}"
        if not deformable or stage not in backbone.net:
            continue
        for block in backbone.net[stage][:: node.DEFORM_INTERVAL]:
            if not hasattr(block, "conv3"):
                raise ValueError("MODEL.RESNETS.DEFORM_ON_PER_STAGE needs bottleneck blocks: DEPTH 50, 101 or 152.")
            block.conv2 = SelfOffsetDeformConv(
                block.conv2, modulated=node.DEFORM_MODULATED, groups=node.DEFORM_NUM_GROUPS
            )
    return backbone


@BACKBONE_REGISTRY.register()
def build_cspnet_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """
    CSPDarkNet-53 or DarkNet-53 from MODEL.CSPNET; the maps of stages 0 to 4 are csp0 to csp4, strides 2 to 32.

    timm's networks equal the authors': the same split of a stage, LeakyReLU with slope 0.01, no activation after a
    block's sum.
    """
    node = cfg.MODEL.CSPNET
    return TimmBackbone(
        node.NAME,
        strides_of(node.OUT_FEATURES, ("csp",), 1, "MODEL.CSPNET.OUT_FEATURES"),
        norm=node.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_chans=input_shape.channels,
    )


@BACKBONE_REGISTRY.register()
def build_pyramid_vision_transformer(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """
    PVTv2 (Wang et al., arXiv 2106.13797) from MODEL.PVT; the maps of stages 1 to 4 are p1 to p4, strides 4 to 32.

    timm's networks equal the authors'. The drop path rate rises to 0.1, as in the authors' code. LINEAR selects b2 with
    linear attention, whatever NAME is.
    """
    node = cfg.MODEL.PVT
    variant = node.NAME[len("pvt_v2_") :] if node.NAME.startswith("pvt_v2_") else node.NAME
    return TimmBackbone(
        f"pvt_v2_{'b2_li' if node.LINEAR else variant}",
        strides_of(node.OUT_FEATURES, ("p",), 1, "MODEL.PVT.OUT_FEATURES"),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_chans=input_shape.channels,
        drop_path_rate=0.1,
    )
