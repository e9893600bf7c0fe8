"""Exports and verifies in one step: a file whose results differ is not kept."""

import json
import logging
import os
from collections.abc import Sequence

from ..files import atomic_write, write_bytes
from ..inference.predictor import Predictor
from .exporters import export
from .parity import Parity, compare
from .runtime import ExportedPredictor

__all__ = ["ParityError", "export_verified"]

logger = logging.getLogger(__name__)


class ParityError(Exception):
    """The exported file's results differ from PyTorch's; one sentence says how."""


def export_verified(predictor: Predictor, path: str, format: str, files: Sequence[str], **options) -> Parity:
    """
    Export, run the file on images and compare; write its description to ``<path>.json``.

    Args:
        files: image files to compare on.
        options: passed to `export`.

    Returns:
        the result of the comparison.

    Raises:
        ParityError: the results differ; no file is left at ``path``.
        ValueError: see `export`.
    """
    with atomic_write(path) as temporary:
        information = export(predictor, str(temporary), format, **options)
        parity = compare(predictor, ExportedPredictor(str(temporary), trust=True), files)
        logger.info(
            "%.1f MB; %d images, %d scores and %d masks compared: worst score difference %.2g, worst mask IoU %.4f; "
            "PyTorch %.0f ms, exported %.0f ms",
            os.path.getsize(temporary) / 1e6,
            parity.images,
            parity.scores,
            parity.masks,
            parity.score_difference,
            parity.mask_iou,
            parity.pytorch_ms,
            parity.exported_ms,
        )
        if parity.failure:
            raise ParityError(f"{path}: {parity.failure}; the file is not kept.")
    write_bytes(f"{path}.json", json.dumps(information, indent=1).encode())
    return parity
