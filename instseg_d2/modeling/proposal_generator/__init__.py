"""Proposal generators and box detectors."""

from .fcos import FCOS
from .fcos_detector import FCOSDetector

__all__ = ["FCOS", "FCOSDetector"]
