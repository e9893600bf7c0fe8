"""Exports trained models to files that run without this package: ONNX, OpenVINO and PyTorch's exported programs."""

from .exporters import FORMATS, MASKS, export
from .parity import Parity, compare
from .runtime import ExportedPredictor
from .verified import ParityError, export_verified

__all__ = ["FORMATS", "MASKS", "ExportedPredictor", "Parity", "ParityError", "compare", "export", "export_verified"]
