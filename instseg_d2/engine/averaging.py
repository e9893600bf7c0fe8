"""The exponential moving average of a model's weights, which usually detects better than the last weights."""

import torch
from torch import nn
from torch.optim import swa_utils

__all__ = ["AveragedModel"]


def _statistics(model: nn.Module) -> list[torch.Tensor]:
    """The running statistics of all batch norms."""
    return [x for name, x in model.named_buffers() if name.endswith(("running_mean", "running_var"))]


class AveragedModel(swa_utils.AveragedModel):
    """
    PyTorch's class, for the average ``w <- d * w + (1 - d) * new weights`` after every step.

    The weights and the running statistics of batch norms are averaged, so that they fit each other; other buffers are
    copied. The first step replaces the initial weights. After ``t`` steps, ``d`` is ``(1 + t) / (10 + t)``, but at most
    ``decay``: a short training soon forgets its start, too.
    """

    def __init__(self, model: nn.Module, decay: float):
        """Copy the model, which must not be wrapped for distributed training."""
        super().__init__(model, multi_avg_fn=self._average)
        self._max_decay = decay

    @property
    def decay(self) -> float:
        """The factor ``d`` of the next step."""
        steps = int(self.n_averaged)
        return min(self._max_decay, (1 + steps) / (10 + steps)) if steps else 0.0

    @torch.no_grad()
    def _average(self, averaged: list, new: list, _) -> None:
        torch._foreach_lerp_(averaged, new, 1 - self.decay)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Include the weights that a step has made."""
        decay, before = self.decay, [x.clone() for x in _statistics(self.module)]
        super().update_parameters(model)  # copies the buffers
        if before:
            torch._foreach_lerp_(_statistics(self.module), before, decay)

    def restart(self, model: nn.Module) -> None:
        """Start again, from these weights."""
        self.module.load_state_dict(model.state_dict())
        self.n_averaged.zero_()
