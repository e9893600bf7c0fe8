"""Times a model in PyTorch and, exported, in every runtime that is installed, in turns."""

import importlib.util
import tempfile
from pathlib import Path

import torch

from instseg_d2.apps.costs import interleaved_medians
from instseg_d2.data.images import read_image
from instseg_d2.errors import ConfigError
from instseg_d2.export import FORMATS, MIN_CALIBRATION, ExportedPredictor, export
from instseg_d2.inference.precision import autocast_type
from instseg_d2.inference.predictor import Predictor
from instseg_d2.methods import method_of

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino")}
NAMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


def installed() -> list[str]:
    """The formats whose packages are installed."""
    return [x for x, names in PACKAGES.items() if all(importlib.util.find_spec(name) for name in names)]


def runtime_rows(predictor: Predictor, image: str, size: tuple, repeats: int) -> list[list]:
    """
    Milliseconds from a resized image to boxes and compact masks. Full-size masks cost the same everywhere and are left
    out.

    Args:
        predictor: optimised, on the CPU.
        image: an image file of ``size`` (H, W).

    Returns:
        rows of runtime, median milliseconds, speed relative to the first row, megabytes of the file.
    """
    pixels = read_image(image, "RGB")
    record = predictor.preprocess(pixels, "RGB")

    def pytorch(enabled: bool):
        def run():
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                predictor.predict([record], masks="none")

        return run

    names, functions, megabytes = ["PyTorch float32"], [pytorch(False)], [float("nan")]
    if autocast_type(True, torch.device("cpu")):
        names.append("PyTorch bfloat16")
        functions.append(pytorch(True))
        megabytes.append(float("nan"))
    exportable = method_of(predictor.cfg).exportable
    form = exportable(predictor.model).compact_form if exportable else "full"
    with tempfile.TemporaryDirectory() as folder:
        # For the time, ranges of values that are measured on one image are good enough.
        kinds = [(x, bits) for x in installed() for bits in ("", " 8 bits")] if exportable else []
        for format, bits in kinds:
            path = Path(folder, format + bits, f"model{FORMATS[format]}")
            path.parent.mkdir()
            calibration = [image] * MIN_CALIBRATION if bits else []
            try:
                export(predictor, format, size=size, masks=form, calibration=calibration).save(str(path))
            except ConfigError as error:
                print(f"{NAMES[format]}{bits}: {error}")
                continue
            exported = ExportedPredictor(str(path))
            inputs = exported.preprocess(pixels, "RGB")
            names.append(NAMES[format] + bits)
            functions.append(lambda exported=exported, inputs=inputs: exported.run([inputs]))
            megabytes.append(sum(x.stat().st_size for x in path.parent.iterdir()) / 1e6)
        times = interleaved_medians(functions, repeats)
    return [[name, ms, times[0] / ms, file] for name, ms, file in zip(names, times, megabytes)]
