"""timm's DLA-34 under the FPN of FCOS."""

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN
from torch import nn

from .fcos_fpn import build_fcos_fpn
from .timm import TimmBackbone, strides_of


@BACKBONE_REGISTRY.register()
def build_fcos_dla_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """
    DLA-34 (Yu et al., arXiv 1707.06484) from MODEL.DLA, with P6 and P7 from P5 (AdelaiDet's name of the builder). The
    maps of levels 2 to 5 are level2 to level5 or stage2 to stage5, strides 4 to 32.

    timm's network is the authors', without the outer projections of levels 3 and 4, which the authors do not use.
    """
    node = cfg.MODEL.DLA
    synchronised = node.NORM == "SyncBN"
    bottom_up = TimmBackbone(
        "dla34",
        strides_of(node.OUT_FEATURES, ("level", "stage"), 0, "MODEL.DLA.OUT_FEATURES"),
        norm="BN" if synchronised else node.NORM,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_chans=input_shape.channels,
    )
    if synchronised:
        bottom_up = nn.SyncBatchNorm.convert_sync_batchnorm(bottom_up)
    return build_fcos_fpn(cfg, bottom_up)
