"""Evaluation: each data set's evaluator, and what its numbers mean."""

from .evaluators import build_evaluator, check_evaluator, leaves_out
from .panoptic_quality import PanopticQualityEvaluator, count_matches
from .proposal_recall import ProposalRecallEvaluator
from .run import evaluate, write_results
