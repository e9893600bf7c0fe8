"""Proposal generators and box detectors."""

from .fcos import FCOS
from .fcos_detector import FCOSDetector
from .no_proposals import NoProposals

__all__ = ["FCOS", "FCOSDetector", "NoProposals"]
