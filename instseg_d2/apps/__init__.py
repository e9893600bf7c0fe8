"""What the commands do: prediction on files, comparison of models, costs."""

from .batch_predictor import BatchPredictor

__all__ = ["BatchPredictor"]
