"""A ResNet whose last stages are dilated instead of strided."""

from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import BACKBONE_REGISTRY, ResNet
from torch import nn

from .resnet import build_resnet


def _dilate(stage: nn.Module, dilation: int) -> int:
    """
    Replace the strides of a stage of residual blocks by dilation, in place.

    Args:
        dilation: dilation of the stage's input.

    Returns:
        the dilation of its output.
    """
    for block in stage:
        block.stride = 1
        for name, module in block.named_children():
            if not isinstance(module, nn.Conv2d):
                continue
            stride = module.stride[0]
            module.stride = (1, 1)
            if name == "shortcut":
                continue
            if module.kernel_size == (3, 3):
                module.dilation = module.padding = (dilation, dilation)
            dilation *= stride
    return dilation


@BACKBONE_REGISTRY.register()
def build_dilated_resnet_backbone(cfg, input_shape: ShapeSpec) -> ResNet:
    """
    Detectron2's ResNet, whose stride is at most MODEL.RESNETS.OUTPUT_STRIDE; later stages are dilated instead.
    Parameter names do not change.
    """
    limit = cfg.MODEL.RESNETS.OUTPUT_STRIDE
    plain = build_resnet(cfg, input_shape)
    dilation = 1
    for number, stage in enumerate(plain.stages):
        if 4 * 2**number > limit:
            dilation = _dilate(stage, dilation)
    # A new ResNet of the same parts, because it computes its strides when it is made.
    stages = [list(stage) for stage in plain.stages]
    return ResNet(plain.stem, stages, out_features=cfg.MODEL.RESNETS.OUT_FEATURES)
