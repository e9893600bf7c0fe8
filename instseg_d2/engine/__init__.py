"""Training: set-up, processes, optimiser, trainer and hooks; also exports the predictor."""

from ..inference.predictor import Predictor
from .launch import launch
from .setup import argument_parser, setup
from .trainer import Trainer

__all__ = [
    "Predictor",
    "Trainer",
    "argument_parser",
    "launch",
    "setup",
]
