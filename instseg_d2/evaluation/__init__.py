"""Evaluation: the evaluators of data sets, and explanations of their numbers."""

from .evaluators import build_evaluator, check_evaluator, leaves_out
from .panoptic_quality import PanopticQualityEvaluator, count_matches
from .predictions import evaluate_predictions
from .proposal_recall import ProposalRecallEvaluator
from .report import ReportEvaluator, build_report
from .run import evaluate, write_results

__all__ = [
    "PanopticQualityEvaluator",
    "ProposalRecallEvaluator",
    "ReportEvaluator",
    "build_evaluator",
    "build_report",
    "check_evaluator",
    "count_matches",
    "evaluate",
    "evaluate_predictions",
    "leaves_out",
    "write_results",
]
