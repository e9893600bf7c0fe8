"""Hooks that keep parts of the model from changing."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ConfigError

__all__ = ["FreezeBackbone", "FreezeNorms"]

logger = logging.getLogger(__name__)


class FreezeNorms(HookBase):
    """
    From a given iteration on, batch norms use their running statistics, as at test time. The weights then adapt to
    these, which differ much from the statistics of a small batch. Register it on all processes.
    """

    def __init__(self, iteration: int):
        self._iteration = iteration

    def before_step(self):
        if self.trainer.iter < self._iteration:
            return
        if self.trainer.iter == self._iteration:
            self.trainer.share_buffers()
            logger.info("From iteration %d on, batch norms use their running statistics.", self._iteration)
        for network in self.trainer.networks:
            for module in network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()


class FreezeBackbone(HookBase):
    """
    Keep the backbone as it is for the first iterations: its parameters get no gradient, and its norms use their running
    statistics. An FPN around it is trained from the start. Register it on all processes, before `FreezeNorms`.
    """

    def __init__(self, network: nn.Module, iterations: int):
        """
        Args:
            network: the model, without a wrapper.
            iterations: their number.

        Raises:
            ConfigError: the model has no backbone.
        """
        backbone = getattr(network, "backbone", None)
        if backbone is None:
            raise ConfigError(f"SOLVER.FREEZE_BACKBONE_ITER must be 0: {type(network).__name__} has no backbone.")
        self._backbone = getattr(backbone, "bottom_up", backbone)
        self._parameters = [p for p in self._backbone.parameters() if p.requires_grad]
        self._iterations = iterations

    @property
    def _frozen(self) -> bool:
        return self.trainer.iter < self._iterations

    def before_step(self):
        if self._frozen:
            self._backbone.eval()
            self._set_trained(False)
        elif self.trainer.iter == self._iterations:
            self._backbone.train()
            self._set_trained(True)
            logger.info("From iteration %d on, the backbone is trained too.", self._iterations)

    def _set_trained(self, trained: bool):
        if comm.get_world_size() == 1:  # DistributedDataParallel waits for all gradients that it expected at first
            for parameter in self._parameters:
                parameter.requires_grad_(trained)

    def after_backward(self):
        if self._frozen:
            for parameter in self._parameters:
                parameter.grad = None
