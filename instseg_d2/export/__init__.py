"""Exports trained models to files that run without this package: ONNX, OpenVINO and PyTorch's exported programs."""

from .accuracy import Accuracy, compare_on_data, compare_on_images
from .exporters import FORMATS, MASKS, MIN_CALIBRATION, export
from .parity import Parity, compare
from .runtime import ExportedPredictor
from .verified import ParityError, export_verified

__all__ = [
    "FORMATS",
    "MASKS",
    "MIN_CALIBRATION",
    "Accuracy",
    "ExportedPredictor",
    "Parity",
    "ParityError",
    "compare",
    "compare_on_data",
    "compare_on_images",
    "export",
    "export_verified",
]
