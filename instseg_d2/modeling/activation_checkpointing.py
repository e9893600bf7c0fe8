"""
Activation checkpointing (Chen et al., arXiv 1604.06174): parts of the model keep only their inputs for the backward
pass, which runs them again.
"""

import contextlib
import functools
import itertools
import threading
from collections.abc import Iterable
from typing import Callable, Optional

from torch import is_grad_enabled, nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError
from ..layers import untouched_statistics

__all__ = ["checkpoint_activations"]

BLOCKS = 3  # of a stage that are run again together; more of them: less is kept, but the backward pass needs more

_thread = threading.local()


def checkpoint_activations(model: nn.Module, parts: Iterable[str]) -> None:
    """
    Make parts of a model keep only their inputs in training. Names of parameters, losses and gradients stay the same,
    and batch norms see each batch once.

    Args:
        model: the model, without a wrapper; changed in place.
        parts: MODEL.ACTIVATION_CHECKPOINTING. "backbone": its stages. "heads": the methods that a module of this
            package names in its class attribute ``checkpointed_methods``.

    Raises:
        ConfigError: the model has no such part.
    """
    backbone = getattr(model, "backbone", None)
    in_backbone = set() if backbone is None else set(backbone.modules())
    for part in parts:
        if part == "heads":
            count = _checkpoint_methods(module for module in model.modules() if module not in in_backbone)
        else:
            count = _checkpoint_methods(in_backbone) or _checkpoint_stages(backbone)
        if not count:
            raise ConfigError(
                f"MODEL.ACTIVATION_CHECKPOINTING names {part!r}, but this {type(model).__name__} has none that can be "
                "run again in the backward pass: remove it."
            )


def _checkpoint_methods(modules: Iterable[nn.Module]) -> int:
    found = [(module, name) for module in modules for name in getattr(module, "checkpointed_methods", ())]
    for module, name in found:
        setattr(module, name, functools.partial(_rerun, getattr(module, name)))
    return len(found)


def _checkpoint_stages(backbone: Optional[nn.Module]) -> int:
    if backbone is None:
        return 0
    root = getattr(backbone, "bottom_up", backbone)  # FPN
    root = getattr(root, "net", root)  # TimmBackbone
    while len(inner := [child for child in root.children() if _is_trained(child)]) == 1:
        root = inner[0]
    found = [module for module in root.modules() if module is not root and _is_stage(module)]
    for module in found:  # nested ones, too: some are never called, and `_rerun` only reruns the outermost
        if type(module).forward is nn.Sequential.forward:
            module.forward = functools.partial(_rerun_blocks, module)
        else:
            module.forward = functools.partial(_rerun, module.forward)
    return len(found)


def _is_trained(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())


def _is_stage(module: nn.Module) -> bool:
    """Whether to rerun a module as a whole; not so if it contains a sequence of blocks that are."""
    children = list(module.children())
    if not children or not _is_trained(module):
        return False
    blocks = [child for child in children if isinstance(child, (nn.Sequential, nn.ModuleList)) and _has_blocks(child)]
    return isinstance(module, nn.Sequential) or not blocks


def _has_blocks(module: nn.Module) -> bool:
    return sum(len(list(child.children())) > 0 for child in module) > 1


def _rerun_blocks(stage: nn.Sequential, x):
    """Run a sequence, a few blocks at a time."""
    blocks = list(stage)
    for start in range(0, len(blocks), BLOCKS):
        x = _rerun(nn.Sequential(*blocks[start : start + BLOCKS]).forward, x)
    return x


def _rerun(method: Callable, *args, **kwargs):
    """Run a module's method; the backward pass runs it again, unless it is part of something that is."""
    if not is_grad_enabled() or getattr(_thread, "inside", False):
        return method(*args, **kwargs)
    runs = itertools.count()

    def run(*args, **kwargs):
        again = next(runs) > 0
        with _inside(), untouched_statistics(method.__self__) if again else contextlib.nullcontext():
            return method(*args, **kwargs)

    return checkpoint(run, *args, use_reentrant=False, **kwargs)


@contextlib.contextmanager
def _inside():
    _thread.inside = True
    try:
        yield
    finally:
        _thread.inside = False
