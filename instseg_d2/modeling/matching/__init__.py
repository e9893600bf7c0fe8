"""One-to-one matching of predictions and objects."""

from .hungarian import match_by_score

__all__ = ["match_by_score"]
