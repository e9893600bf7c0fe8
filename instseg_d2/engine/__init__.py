"""Training: set-up, processes, optimiser, trainer and hooks; also exports the predictor."""

from ..inference.predictor import Predictor
from .launch import launch
from .minutes import fit_to_minutes
from .setup import argument_parser, kept_schedule, setup
from .trainer import Trainer

__all__ = [
    "Predictor",
    "Trainer",
    "argument_parser",
    "fit_to_minutes",
    "kept_schedule",
    "launch",
    "setup",
]
