"""timm's Swin Transformers as backbones. N images, C channels of a map, H x W pixels."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import nn

from .timm import TimmBackbone, strides_of


class SwinBackbone(TimmBackbone):
    """
    A Swin Transformer (Liu et al., arXiv 2103.14030) for images of any size, with a LayerNorm on every map, as in its
    authors' detectors.

    Args:
        strides: feature name -> stride in pixels.
        freeze_at: 2 freezes the patch embedding and the first stage, 3 also the second, ...; below 2 freezes nothing.
        arguments: passed to timm's SwinTransformer, such as embed_dim, depths, num_heads, window_size.
    """

    def __init__(self, strides: dict[str, int], *, freeze_at: int = 0, **arguments):
        super().__init__(
            "swin_tiny_patch4_window7_224",
            strides,
            norm="",
            freeze_at=max(freeze_at, 0),
            strict_img_size=False,
            always_partition=True,
            **arguments,
        )
        self.norms = nn.ModuleDict({name: nn.LayerNorm(c) for name, c in self._out_feature_channels.items()})

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        """x (N, 3, H, W) -> name -> (N, C, H / stride, W / stride)."""
        maps = zip(self._out_features, self.net(x))
        return {name: self.norms[name](m).permute(0, 3, 1, 2).contiguous() for name, m in maps}


@BACKBONE_REGISTRY.register()
def build_swint_fpn_backbone(cfg, input_shape: ShapeSpec) -> FPN:
    """An FPN on the Swin Transformer of MODEL.SWINT, whose maps stage2 to stage5 have strides 4 to 32."""
    node = cfg.MODEL.SWINT
    bottom_up = SwinBackbone(
        strides_of(node.OUT_FEATURES, ("stage",), 0, "MODEL.SWINT.OUT_FEATURES"),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        embed_dim=node.EMBED_DIM,
        depths=tuple(node.DEPTHS),
        num_heads=tuple(node.NUM_HEADS),
        window_size=node.WINDOW_SIZE,
        mlp_ratio=node.MLP_RATIO,
        drop_path_rate=node.DROP_PATH_RATE,
        in_chans=input_shape.channels,
    )
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
