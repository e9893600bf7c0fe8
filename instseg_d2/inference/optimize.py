"""The fast path of inference: the same model, rewritten for speed once its weights no longer change."""

import copy

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

_BATCH_NORMS = (FrozenBatchNorm2d, nn.BatchNorm2d, nn.SyncBatchNorm)


@torch.no_grad()
def fold_norms(model: nn.Module) -> int:
    """
    Fold each frozen or evaluated batch norm into the convolution before it, in place.

    Only Detectron2's Conv2d, which carries its norm itself, is touched.

    Returns:
        how many norms were folded.
    """
    count = 0
    for module in model.modules():
        if isinstance(module, Conv2d) and isinstance(module.norm, _BATCH_NORMS):
            norm = module.norm
            module.weight, module.bias = fuse_conv_bn_weights(
                module.weight, module.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            module.norm = None
            count += 1
    return count


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """
    A copy of the model for inference alone: evaluation mode, norms folded, channels_last weights, and what modules
    with a method ``fold`` simplify by themselves.

    Detections equal the plain model's up to rounding. The copy cannot be trained.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    fold_norms(model)
    for module in model.modules():
        if hasattr(module, "fold"):
            module.fold()
    return model.to(memory_format=torch.channels_last)
