"""Errors as messages in the page, which goes on working."""

import functools
import html
import logging
from typing import Callable

import gradio as gr

from ...errors import is_user_error, sentence
from ..results import shown_name

__all__ = ["guarded", "report_to", "warn"]

logger = logging.getLogger(__name__)

SECONDS = 15  # for which a message is shown


def warn(text: str) -> None:
    """Show a sentence in the page."""
    gr.Warning(html.escape(shown_name(text)), duration=SECONDS)  # the text may name any file


def guarded(function: Callable) -> Callable:
    """Show an error of a callback as a sentence; the page keeps what it shows."""

    @functools.wraps(function)
    def run(*args):
        try:
            return function(*args)
        except Exception as error:
            if is_user_error(error):
                warn(sentence(error))
            else:
                logger.exception("the page's %s failed", function.__name__)
                warn(f"This failed: {sentence(error) or type(error).__name__}. The terminal shows more.")
            return gr.skip()

    return run


def report_to(progress: gr.Progress) -> Callable[[float, str], None]:
    """The function to report progress to."""
    return lambda share, text: progress(share, desc=text)
