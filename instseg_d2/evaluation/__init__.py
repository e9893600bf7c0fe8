"""Evaluators chosen by the data set, and what their numbers mean."""

from .evaluators import build_evaluator, check_evaluator, leaves_out
from .panoptic_quality import PanopticQualityEvaluator, count_matches
from .proposal_recall import ProposalRecallEvaluator
from .run import evaluate, write_results
