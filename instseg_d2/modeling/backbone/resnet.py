"""Detectron2's ResNet with deformable convolutions that need no compiled Detectron2."""

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone, ResNet, build_resnet_backbone
from detectron2.modeling.backbone import build_backbone as build_registered_backbone

from ...errors import ConfigError
from ...layers import make_block_deformable


def build_resnet(cfg, input_shape: ShapeSpec) -> ResNet:
    """
    Detectron2's ResNet from MODEL.RESNETS. In the stages of DEFORM_ON_PER_STAGE the blocks whose index is a multiple of
    DEFORM_INTERVAL are deformable.

    Raises:
        ConfigError: a key asks for what is not supported.
    """
    if cfg.MODEL.MOBILENET or cfg.MODEL.BACKBONE.ANTI_ALIAS:
        raise ConfigError("MODEL.MOBILENET and MODEL.BACKBONE.ANTI_ALIAS are not supported; set both to False.")
    deform = cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE
    if any(deform) and cfg.MODEL.RESNETS.DEPTH in (18, 34):
        raise ConfigError("MODEL.RESNETS.DEFORM_ON_PER_STAGE needs bottleneck blocks: DEPTH 50, 101 or 152.")
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    backbone = build_resnet_backbone(plain, input_shape)
    for stage, wanted in zip(backbone.stages, deform):
        for i in range(0, len(stage) if wanted else 0, cfg.MODEL.RESNETS.DEFORM_INTERVAL):
            stage[i] = make_block_deformable(
                stage[i],
                modulated=cfg.MODEL.RESNETS.DEFORM_MODULATED,
                groups=cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS,
            )
    return backbone


def build_backbone(cfg) -> Backbone:
    """
    The backbone MODEL.BACKBONE.NAME; Detectron2's own ResNet by `build_resnet`, so that its deformable convolutions
    need no compiled Detectron2.
    """
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        return build_resnet(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    return build_registered_backbone(cfg)
