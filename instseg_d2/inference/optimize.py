"""The optimised form of a model for inference, when its weights no longer change."""

import copy

import torch
from detectron2.layers import Conv2d
from torch import nn

from ..layers import InferenceConv2d, fold_norm


def optimize_for_inference(model: nn.Module) -> nn.Module:
    """
    A copy of the model only for inference: in evaluation mode, with channels_last weights, and with the batch norms of
    Detectron2's Conv2d folded; modules with a method ``fold`` simplify themselves. On a CPU, convolutions and some
    large linear layers keep a second copy of their weights once they have run, in the form that computes fastest.

    Its detections equal the original model's up to rounding. The copy cannot be trained.
    """
    model = copy.deepcopy(model).eval().requires_grad_(False)
    if hasattr(model, "training_only"):
        model.training_only = nn.ModuleDict()
    for module in model.modules():
        if isinstance(module, Conv2d) and fold_norm(module, module.norm):
            module.norm = None
    for module in model.modules():
        if hasattr(module, "fold"):
            module.fold()
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            InferenceConv2d.convert(module)
    return model.to(memory_format=torch.channels_last)
