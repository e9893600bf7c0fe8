"""Logging: short lines on the console, everything in ``log.txt``."""

import logging
import os
import sys

from tqdm import tqdm

from ..console import is_terminal

__all__ = ["PROGRESS_LOGGER", "setup_logging"]

# Progress lines go to the file, and to the console only without a progress bar.
PROGRESS_LOGGER = "instseg_d2.progress"

_OURS = ("instseg_d2", "detectron2", "fvcore")
# Replaced by the bar on a terminal: progress lines, and Detectron2's inference speed.
_BAR_SHOWS = (PROGRESS_LOGGER, "detectron2.evaluation.evaluator")
# Detectron2's notes on memory layout, and its warning about gaps in category ids, which are common.
_FILE_ONLY = {"detectron2.data.common": "", "detectron2.data.datasets.coco": "Category ids in annotations"}


def _for_console(record: logging.LogRecord) -> bool:
    if is_terminal() and record.name.startswith(_BAR_SHOWS):
        return False
    return not (record.name in _FILE_ONLY and _FILE_ONLY[record.name] in record.getMessage())


class _ConsoleHandler(logging.Handler):
    """
    Writes lines above the progress bar, if there is one. tqdm's ``logging_redirect_tqdm`` would be needed around every
    bar, and the handler that it installs has no level.
    """

    def __init__(self):
        super().__init__(logging.INFO)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        self.addFilter(_for_console)

    def emit(self, record):
        try:
            text = self.format(record)
            tqdm.write(f"{record.levelname}: {text}" if record.levelno >= logging.WARNING else text, file=sys.stdout)
            sys.stdout.flush()
        except (OSError, ValueError, AttributeError):  # a failed write must not stop the run
            self.handleError(record)


def _from_known_package(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING or record.name.split(".")[0] in _OURS


def setup_logging(output_dir: str = "", rank: int = 0) -> None:
    """
    Send the messages of this package, Detectron2 and fvcore, and all warnings, to the console (INFO, rank 0) and to
    ``output_dir/log.txt`` (DEBUG; ``log.txt.rankN`` for other ranks). A second call replaces the first.
    """
    root = logging.getLogger()
    for handler in [h for h in root.handlers if getattr(h, "of_instseg_d2", False)]:
        root.removeHandler(handler)
        handler.close()
    handlers = [_ConsoleHandler()] if rank == 0 else []
    if output_dir:
        os.makedirs(output_dir, exist_ok=True)
        name = "log.txt" if rank == 0 else f"log.txt.rank{rank}"
        file_handler = logging.FileHandler(os.path.join(output_dir, name), encoding="utf-8", errors="backslashreplace")
        file_handler.setFormatter(
            logging.Formatter("[%(asctime)s] %(name)s %(levelname)s: %(message)s", "%m/%d %H:%M:%S")
        )
        handlers.append(file_handler)
    for handler in handlers:
        handler.of_instseg_d2 = True
        handler.addFilter(_from_known_package)
        root.addHandler(handler)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.DEBUG)
