"""Evaluators chosen by the data set, and what their numbers mean."""

from .build import build_evaluator
from .run import evaluate, write_results
