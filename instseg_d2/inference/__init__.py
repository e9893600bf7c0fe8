"""Trained models on images: the predictor, the fast form of a model, number formats, settings of the CPU."""

from .cpu import tune_cpu
from .image_predictor import ImagePredictor
from .optimize import optimize_for_inference
from .predictor import Predictor
