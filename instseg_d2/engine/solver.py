"""Builds the optimiser, with gradient clipping, from the config."""

import torch
from detectron2.config import CfgNode
from detectron2.solver import get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping

from ..methods import method_of
from .muon import Muon

__all__ = ["build_optimizer"]

OPTIMIZERS = {
    "SGD": lambda groups, node: torch.optim.SGD(groups, node.BASE_LR, momentum=node.MOMENTUM, nesterov=node.NESTEROV),
    "ADAMW": lambda groups, node: torch.optim.AdamW(groups, node.BASE_LR, node.BETAS, amsgrad=node.AMSGRAD, fused=True),
    "MUON": lambda groups, node: Muon(groups, node.BASE_LR, node.MOMENTUM, node.NESTEROV, betas=node.BETAS),
}


def _split(groups: list, chosen: set, **values) -> list:
    """Split each group in two: the parameters not in ``chosen``, and those in it, with the given values."""
    split = []
    for group in groups:
        split.append({**group, "params": [p for p in group["params"] if p not in chosen]})
        split.append({**group, "params": [p for p in group["params"] if p in chosen], **values})
    return [group for group in split if group["params"]]


def _backbone(model: torch.nn.Module) -> dict:
    """The parameters of the backbone, but not of an FPN around it, by name."""
    named = {name: p for name, p in model.named_parameters() if "backbone" in name}
    inside = {name: p for name, p in named.items() if "backbone.bottom_up." in name}  # its name inside an FPN
    return inside or named


def _parameter_groups(cfg: CfgNode, model: torch.nn.Module) -> list:
    solver, backbone_names = cfg.SOLVER, _backbone(model).keys()

    def lr_factor(name: str) -> float:
        backbone = solver.BACKBONE_MULTIPLIER if name in backbone_names else 1.0
        bias = solver.BIAS_LR_FACTOR if name.endswith(".bias") else 1.0
        return backbone * bias

    words = method_of(cfg).undecayed_names
    groups = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay=solver.WEIGHT_DECAY,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM if words is None else None,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
        lr_factor_func=lr_factor,
    )
    if words is None:
        return groups
    undecayed = {p for name, p in model.named_parameters() if any(word in name for word in words)}
    return _split(groups, undecayed, weight_decay=solver.WEIGHT_DECAY_NORM)


def _add_clipping(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return optimizer
    if clip.CLIP_TYPE != "full_model":
        return maybe_add_gradient_clipping(cfg, optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    max_norm, norm_type = clip.CLIP_VALUE, clip.NORM_TYPE

    def clip_all(*_):
        torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)

    optimizer.register_step_pre_hook(clip_all)
    return optimizer


def build_optimizer(cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
    """
    SGD, AdamW or Muon over the trainable parameters.

    ``SOLVER.OPTIMIZER``: "SGD", "ADAMW", "MUON" (see :class:`.muon.Muon`; embeddings, what a module names in
    ``not_for_muon``, and without ``MUON_BACKBONE`` the backbone use its AdamW), or empty for the method's default.
    Learning rate: ``BASE_LR``, times ``BACKBONE_MULTIPLIER`` for names that contain "backbone" (but not for an FPN
    around it), times ``BIAS_LR_FACTOR`` for biases. ``MOMENTUM``, ``NESTEROV``: for SGD and Muon. Weight decay:
    ``WEIGHT_DECAY``, but ``WEIGHT_DECAY_NORM`` in normalisation layers and ``WEIGHT_DECAY_BIAS``, if set, for biases; a
    method may select the parameters with ``WEIGHT_DECAY_NORM`` by name instead (``Method.undecayed_names``).
    ``CLIP_GRADIENTS``: clips each parameter by value or norm, or the norm of the full model.

    Raises:
        ValueError: a value is out of range, or there is nothing to train.
    """
    solver = cfg.SOLVER
    name = (solver.OPTIMIZER or method_of(cfg).optimizer).upper()
    groups = _parameter_groups(cfg, model)
    if not groups:
        raise ValueError(f"{cfg.MODEL.META_ARCHITECTURE} has no trainable parameters; lower MODEL.BACKBONE.FREEZE_AT")
    if name == "MUON":
        others = {m.weight for m in model.modules() if isinstance(m, torch.nn.Embedding)}
        others |= {m.get_parameter(name) for m in model.modules() for name in getattr(m, "not_for_muon", ())}
        others |= set() if solver.MUON_BACKBONE else set(_backbone(model).values())
        groups = _split(groups, others, matrices=False)
    return _add_clipping(cfg, OPTIMIZERS[name](groups, solver))
