"""Training, evaluation and inference: set-up, processes, solver, trainer, predictor."""

from ..inference.predictor import Predictor
from .launch import launch
from .setup import argument_parser, setup
from .trainer import Trainer
