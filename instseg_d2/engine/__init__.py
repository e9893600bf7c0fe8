"""Training, evaluation and inference: set-up, processes, solver, trainer, predictor."""

from .errors import run_script
from .launch import launch
from .predictor import Predictor
from .setup import argument_parser, setup
from .trainer import Trainer
