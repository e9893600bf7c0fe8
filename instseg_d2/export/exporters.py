"""Exports models with torch.export, to a .pt2 file or, through PyTorch's ONNX exporter, to an .onnx file."""

import contextlib
import inspect
import io
import json
import logging
import warnings
from typing import Optional

import torch

from ..errors import ConfigError
from ..inference.predictor import Predictor
from ..methods import method_of, methods
from .packages import needed

__all__ = ["FORMATS", "INPUTS", "METADATA", "MIN_SIDE", "export", "metadata"]

METADATA = "instseg_d2.json"  # name of the metadata inside both kinds of file
INPUTS, OUTPUTS = ("images", "image_size", "output_size"), ("scores", "labels", "masks")  # of `Exportable`
OPSET = 18
MAX_BATCH, MAX_SIDE = 1024, 16384
MIN_SIDE = 33  # of a free size: padded to 32 there is one coarsest cell, and the graph differs


def metadata(predictor: Predictor, *, size, batch: int, dynamic: bool, dtype: torch.dtype) -> dict:
    """What a program that runs the file needs to know, as plain data."""
    model, cfg = predictor.model, predictor.cfg
    return {
        "method": type(model).__name__,
        "inputs": {
            "images": "(B, 3, H, W), RGB, 0-255, not normalised; free sides are above 32",
            "image_size": "(2,) int64: rows and columns of the images that are picture, the rest is padding",
            "output_size": "(2,) int64: height and width of the masks",
        },
        "outputs": {
            "scores": "(B, N) float32, 0 for what is no object",
            "labels": "(B, N) int64, index of class_names",
            "masks": "(B, N, height, width) bool",
        },
        "channel_order": "RGB",
        "dtype": str(dtype).replace("torch.", ""),
        "batch": None if dynamic else batch,
        "size": None if dynamic else list(size),
        "value_range": predictor.value_range,  # for images with more than 8 bits: the values that become 0 and 255
        "shortest_side": cfg.INPUT.MIN_SIZE_TEST,
        "longest_side": cfg.INPUT.MAX_SIZE_TEST,
        "class_score_threshold": model.score_threshold,
        "mask_threshold": model.mask_threshold,
        "max_detections": model.max_detections,
        "class_names": predictor.class_names,
        "category_ids": predictor.category_ids,
        "torch": torch.__version__,
    }


def _exportable(predictor: Predictor, format: str) -> torch.nn.Module:
    """The predictor's model as a module that can be exported."""
    model, method = predictor.model, method_of(predictor.cfg)
    if method.exportable is None:
        known = " and ".join(x.name for x in methods() if x.exportable)
        raise ConfigError(f"{method.name} cannot be exported yet: only {known} can.")
    if model.device.type != "cpu":
        raise ConfigError(f"models are exported on the CPU: set MODEL.DEVICE to cpu; it is {model.device}.")
    if format == "onnx" and any("Deform" in type(module).__name__ for module in model.modules()):
        raise ConfigError(
            "deformable convolutions cannot be exported to ONNX: use --format pt2, or a config without them."
        )
    return method.exportable(model).eval()


def default_size(cfg) -> tuple[int, int]:
    """(H, W): the test-time limits of the shortest and the longest side, rounded up to multiples of 32."""
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    return tuple(-(-side // 32) * 32 for side in (short or 640, max(longest, short or 640)))


def trace(module, size, batch: int, dynamic: bool, dtype: torch.dtype) -> torch.export.ExportedProgram:
    """The graph of an exportable module for images (batch, 3, *size); if dynamic, also for other batches and sizes."""
    height, width = size
    examples = (
        torch.zeros((batch, 3, height, width), dtype=dtype),
        torch.tensor([height, width]),
        torch.tensor([height + 7, width + 5]),
    )
    options = {}
    if dynamic:
        # Conditions that cannot be proved for all sizes (half of a multiple of 32 is even) are checked at run time.
        options["prefer_deferred_runtime_asserts_over_guards"] = True
        if options.keys() - inspect.signature(torch.export.export).parameters.keys():
            raise ConfigError(f"free sizes need a newer PyTorch than {torch.__version__}: give a size and a batch")
        batch = torch.export.Dim("batch", max=MAX_BATCH)
        sides = (torch.export.Dim(name, min=MIN_SIDE, max=MAX_SIDE) for name in ("height", "width"))
        options["dynamic_shapes"] = ({0: batch, **dict(zip((2, 3), sides))}, None, None)
    with torch.no_grad():
        return torch.export.export(module, examples, strict=False, **options)


def _write_pt2(program, path: str, text: str, dynamic: bool) -> None:
    with warnings.catch_warnings():  # it warns about weights that share memory
        warnings.simplefilter("ignore")
        torch.export.save(program, path, extra_files={METADATA: text})


def _write_onnx(program, path: str, text: str, dynamic: bool) -> None:
    needed("onnx", "onnxscript")
    import onnx

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=OUTPUTS,
            dynamic_shapes=({0: "batch", 2: "height", 3: "width"}, None, None) if dynamic else None,
            verbose=False,
        )
    model = written.model_proto
    onnx.helper.set_model_props(model, {METADATA: text})
    onnx.save(model, path)


FORMATS = {"onnx": _write_onnx, "pt2": _write_pt2}


def export(
    predictor: Predictor,
    path: str,
    format: str,
    *,
    size: Optional[tuple[int, int]] = None,
    batch: int = 1,
    dynamic: bool = False,
    dtype: torch.dtype = torch.uint8,
) -> dict:
    """
    Write the predictor's model as one graph, with the metadata inside the file.

    Args:
        path: file to write.
        format: a key of FORMATS.
        size: (H, W) of the network's input; default: the config's test size. Ignored if dynamic.
        batch: images per batch. Ignored if dynamic.
        dynamic: batch, height and width are free.
        dtype: dtype of the images, uint8 or float32.

    Returns:
        the metadata.

    Raises:
        ConfigError: this model, format or size cannot be exported, or a package is missing.
    """
    if format not in FORMATS:
        raise ConfigError(f"the format must be one of {', '.join(FORMATS)}; got {format}")
    module = _exportable(predictor, format)
    size = tuple(size or default_size(predictor.cfg))
    if min(*size, batch) < 1 or max(size) > MAX_SIDE:
        raise ConfigError(f"the batch must be at least 1 and a side 1 to {MAX_SIDE} pixels; got {batch} and {size}")
    logging.getLogger(__name__).info("Exporting to %s; this takes a while.", format)
    # Avoid 1 and multiples of 32 as example sizes, because they could become constants of the graph.
    program = trace(module, (75, 106), 2, True, dtype) if dynamic else trace(module, size, batch, False, dtype)
    information = metadata(predictor, size=size, batch=batch, dynamic=dynamic, dtype=dtype)
    FORMATS[format](program, path, json.dumps(information, indent=1), dynamic)
    return information
