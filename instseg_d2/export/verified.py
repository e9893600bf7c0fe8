"""Exports and verifies in one step: a file whose results differ is not kept."""

import logging
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Union

from ..files import write_bytes
from ..inference.predictor import Predictor
from .accuracy import Accuracy, check_classes, compare_on_data, compare_on_images
from .exporters import export
from .parity import Parity, compare
from .runtime import ExportedPredictor

__all__ = ["ParityError", "export_verified"]

logger = logging.getLogger(__name__)


class ParityError(Exception):
    """The exported file's results differ from PyTorch's; one sentence says how."""


def export_verified(
    predictor: Predictor, path: str, format: str, files: Sequence[str], *, data: str = "", **options
) -> Union[Parity, Accuracy]:
    """
    Export, run the file on images and compare. The figures of the comparison go into the file's metadata, and these
    also into ``<path>.json``.

    Args:
        files: image files to compare on.
        data: a labelled data set to compare an 8-bit file on, instead of files.
        options: passed to `export`.

    Returns:
        the result of the comparison.

    Raises:
        ParityError: the results differ; nothing is written.
        ConfigError: see `export` and `check_classes`.
    """
    path = Path(path)
    if data:
        check_classes(predictor, data)
    exported = export(predictor, format, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem[:40]}-") as folder:
        temporary = Path(folder, path.name)
        exported.save(str(temporary))
        predictors = predictor, ExportedPredictor(str(temporary), trust=True)
        if not options.get("calibration"):
            result = compare(*predictors, files)
        else:
            result = compare_on_data(*predictors, data) if data else compare_on_images(*predictors, files)
        logger.info(
            "%.1f MB; %s; PyTorch %.0f ms, exported %.0f ms",
            sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6,
            result.summary,
            result.pytorch_ms,
            result.exported_ms,
        )
        if result.failure:
            raise ParityError(f"{path}: {result.failure}; the file is not kept.")
        exported.information["parity"] = result.figures()
        exported.save(str(temporary))
        for file in sorted(Path(folder).iterdir()):  # .bin before .xml
            os.replace(file, path.parent / file.name)
    write_bytes(f"{path}.json", exported.text.encode())
    return result
