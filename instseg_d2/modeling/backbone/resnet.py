"""Detectron2's ResNet, with deformable convolutions that need no compiled Detectron2."""

from collections.abc import Mapping, Sequence

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import Backbone, ResNet, build_resnet_backbone
from detectron2.modeling.backbone import build_backbone as build_registered_backbone

from ...layers import make_block_deformable


def build_resnet(cfg, input_shape: ShapeSpec) -> ResNet:
    """
    Build Detectron2's ResNet from MODEL.RESNETS. In the stages of DEFORM_ON_PER_STAGE, every DEFORM_INTERVAL-th block,
    starting with the first, is deformable.
    """
    deform = cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE
    if any(deform) and cfg.MODEL.RESNETS.NUM_GROUPS != 1:
        raise ValueError(
            f"MODEL.RESNETS.NUM_GROUPS is {cfg.MODEL.RESNETS.NUM_GROUPS}; with DEFORM_ON_PER_STAGE it must be 1."
        )
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    backbone = build_resnet_backbone(plain, input_shape)
    for stage, deformable in zip(backbone.stages, deform):
        for i in range(0, len(stage) if deformable else 0, cfg.MODEL.RESNETS.DEFORM_INTERVAL):
            stage[i] = make_block_deformable(
                stage[i],
                modulated=cfg.MODEL.RESNETS.DEFORM_MODULATED,
                groups=cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS,
            )
    return backbone


def check_in_features(key: str, names: Sequence[str], maps: Mapping) -> None:
    """
    Check that a backbone has the feature maps that a config key names.

    Raises:
        ValueError: a map is missing.
    """
    missing = [name for name in names if name not in maps]
    if missing:
        raise ValueError(f"{key} names {', '.join(missing)}; the backbone has {', '.join(maps)}.")


def build_backbone(cfg) -> Backbone:
    """
    Build MODEL.BACKBONE.NAME. Detectron2's ResNet comes from `build_resnet`, so that its deformable convolutions need
    no compiled Detectron2.
    """
    if cfg.MODEL.BACKBONE.NAME == "build_resnet_backbone":
        return build_resnet(cfg, ShapeSpec(channels=len(cfg.MODEL.PIXEL_MEAN)))
    return build_registered_backbone(cfg)
