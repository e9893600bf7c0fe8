"""Runs trained models on images: the predictor, the optimised form of a model, mixed precision, CPU settings."""

from .cpu import tune_cpu
from .image_predictor import ImagePredictor
from .optimize import optimize_for_inference
from .predictor import Predictor

__all__ = [
    "ImagePredictor",
    "Predictor",
    "optimize_for_inference",
    "tune_cpu",
]
