"""Exports trained models to files that run without this package: ONNX and PyTorch's exported programs (.pt2)."""

from .exporters import FORMATS, export
from .parity import Parity, compare
from .runtime import ExportedPredictor
from .verified import ParityError, export_verified

__all__ = ["FORMATS", "ExportedPredictor", "Parity", "ParityError", "compare", "export", "export_verified"]
