"""Logs in one line which weights of a file were loaded and which were not."""

import logging
from collections import Counter
from collections.abc import Sequence

__all__ = ["log_report"]

logger = logging.getLogger(__name__)


def _summary(keys: Sequence[str], limit: int = 6) -> str:
    """'backbone.res2 (10), head (2)': keys counted by their first two parts."""
    groups = Counter(".".join(key.split(".")[:-1][:2]) or key for key in keys)
    shown = [f"{name} ({count})" for name, count in groups.most_common(limit)]
    return ", ".join(shown) + (f" and {len(groups) - limit} more" if len(groups) > limit else "")


def log_report(
    loaded: str,
    *,
    missing: Sequence[str],
    mismatched: Sequence[tuple],
    unexpected: Sequence[str],
    diverged: Sequence[str],
) -> None:
    """
    Log how a file fits a model; a warning if weights are missing, of another shape or not finite.

    Args:
        loaded: the first sentence.
        missing, unexpected: names; mismatched: (name, shape in the file, shape in the model).
        diverged: names of weights with values that are not finite.
    """
    lines = [loaded]
    if missing:
        lines.append(f"{len(missing)} are missing and keep their initial values: {_summary(missing)}.")
    if mismatched:
        names = [key for key, *_ in mismatched]
        lines.append(f"{len(names)} have another shape and are reinitialised: {_summary(names)}.")
    if unexpected:
        lines.append(f"{len(unexpected)} are not used by this model: {_summary(unexpected)}.")
    if diverged:
        lines.append(f"{len(diverged)} have values that are not finite, as after divergence: {_summary(diverged)}.")
    logger.log(logging.WARNING if missing or mismatched or diverged else logging.INFO, " ".join(lines))
    for title, keys in (("missing", missing), ("not used", unexpected)):
        if keys:
            logger.debug("Weights %s: %s", title, ", ".join(keys))
    for key, in_file, in_model in mismatched:
        logger.debug("Weight %s: %s in the file, %s in the model", key, tuple(in_file), tuple(in_model))
