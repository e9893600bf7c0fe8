"""Exports models with torch.export, to a .pt2 file or, through PyTorch's ONNX exporter, to .onnx and OpenVINO files."""

import contextlib
import inspect
import io
import json
import logging
import os
import tempfile
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Optional

import torch
from tqdm import tqdm

from ..console import is_terminal
from ..errors import ConfigError
from ..inference.predictor import Predictor
from ..inference.tiles import seen_by_network
from ..methods import method_of, methods
from ..runtime import masks as compact_masks
from ..runtime.sessions import INPUTS, METADATA, VERSION, needed
from .quantize import quantized
from .runtime import ExportedPredictor, network_inputs

__all__ = ["FORMATS", "MASKS", "MIN_CALIBRATION", "MIN_SIDE", "Export", "export"]

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
MASKS = ("full", "crops", "canvas")
OPSET = 19
MIN_CALIBRATION = 10  # images
MAX_BATCH, MAX_SIDE = 1024, 16384
MIN_SIDE = 33  # of a free size: padded to 32 there is one coarsest cell, and the graph differs
_MASK_TEXT = {
    "full": "(B, D, height, width) bool",
    "crops": "(B, D, R, R) float32, what fills the box, or its window where there are windows; mask_patch resizes it",
    "canvas": "(B, D, h, w) float32, a map of the whole padded input; mask_patch resizes it",
}


def _exportable(predictor: Predictor, format: str, masks: str) -> torch.nn.Module:
    """The predictor's model as a module that can be exported."""
    model, method = predictor.model, method_of(predictor.cfg)
    if method.exportable is None:
        known = ", ".join(x.name for x in methods() if x.exportable)
        raise ConfigError(f"{method.name} cannot be exported: only {known} can.")
    if model.device.type != "cpu":
        raise ConfigError(f"models are exported on the CPU: set MODEL.DEVICE to cpu; it is {model.device}.")
    if format == "openvino" and any("Deform" in type(module).__name__ for module in model.modules()):
        raise ConfigError(
            "OpenVINO has no deformable convolutions: use --format onnx or pt2, or a config without them."
        )
    try:
        exportable = method.exportable(model)
    except ValueError as error:  # not with these values of the config
        raise ConfigError(str(error)) from error
    if masks not in ("full", exportable.compact_form):
        raise ConfigError(f"masks of {method.name} are full or {exportable.compact_form}; got {masks}")
    exportable.compact = masks != "full"
    return exportable.eval()


def default_size(cfg) -> tuple[int, int]:
    """
    (H, W): the test-time limits of the shortest and the longest side, rounded up to multiples of 32; for tiles,
    which are square, twice the former.
    """
    short, longest = cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST
    longest = short if cfg.TEST.TILE.SIZE else longest
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
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torchvision's, about PyTorch
        return torch.export.export(module, examples, strict=False, **options)


class Export:
    """
    A model's graph with its metadata, ready to be saved in one format.

    Attributes:
        information: the metadata, plain data; it may grow between two calls of `save`.
    """

    def __init__(self, program, information: dict, format: str, output_names, dynamic: bool):
        self.information = information
        self.format = format
        self._openvino = None
        if format == "pt2":
            self._program = program
            return
        needed("ONNX and OpenVINO files", "export", "onnx", "onnxscript")
        if format == "openvino":
            needed("OpenVINO files", "openvino", "openvino")
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
            warnings.simplefilter("ignore")
            written = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                input_names=INPUTS,
                output_names=output_names,
                dynamic_shapes=({0: "batch", 2: "height", 3: "width"}, None, None) if dynamic else None,
                verbose=False,
            )
        self._program = written.model_proto

    def quantize(self, modules: Sequence[str], records: Iterable[dict]) -> None:
        """
        Give 8 bits to the layers of these modules.

        Args:
            modules: see `Exportable.eight_bit_modules`.
            records: preprocessed images, to measure the ranges of the activations.
        """
        metadata, count = self.information, 0

        def inputs():
            nonlocal count
            for record in records:
                count += 1
                yield network_inputs([record], metadata)

        self._program = quantized(self._program, modules, inputs())
        metadata["precision"] = "int8"
        metadata["calibration_images"] = count

    @property
    def text(self) -> str:
        return json.dumps(self.information, indent=1)

    def save(self, path: str) -> None:
        """Write the file; an OpenVINO model is two, .xml and .bin."""
        if self.format == "pt2":
            with warnings.catch_warnings():  # it warns about weights that share memory
                warnings.simplefilter("ignore")
                torch.export.save(self._program, path, extra_files={METADATA: self.text})
        elif self.format == "onnx":
            import onnx

            onnx.helper.set_model_props(self._program, {METADATA: self.text})
            onnx.save(self._program, path)
        else:
            import openvino

            if self._openvino is None:
                self._openvino = _to_openvino(self._program)
            self._openvino.set_rt_info(self.text, ["instseg_d2"])
            openvino.save_model(self._openvino, path, compress_to_fp16=False)


def _to_openvino(proto):
    import onnx
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.onnx")
        onnx.save(proto, path)
        return openvino.convert_model(path)


def export(
    predictor: Predictor,
    format: str,
    *,
    size: Optional[tuple[int, int]] = None,
    batch: int = 1,
    dynamic: bool = False,
    dtype: torch.dtype = torch.uint8,
    masks: str = "full",
    calibration: Sequence[str] = (),
) -> Export:
    """
    The predictor's model as one graph.

    Args:
        format: one of FORMATS.
        size: (H, W) of the network's input; default: the config's test size. Ignored if dynamic.
        batch: images per batch. Ignored if dynamic.
        dynamic: batch, height and width are free; not every method can.
        dtype: dtype of the images, uint8 or float32.
        masks: one of MASKS: at the size of the output, or in the method's compact form, crops or canvas.
        calibration: image files; if given, most layers get 8 bits, and these images tell the ranges of their values.

    Raises:
        ConfigError: this model, format or size cannot be exported, or a package is missing.
    """
    if format not in FORMATS:
        raise ConfigError(f"the format must be one of {', '.join(FORMATS)}; got {format}")
    if masks not in MASKS:
        raise ConfigError(f"masks must be one of {', '.join(MASKS)}; got {masks}")
    if calibration and format == "pt2":
        raise ConfigError("8-bit files are ONNX or OpenVINO files: use --format onnx or openvino, not pt2.")
    if 0 < len(calibration) < MIN_CALIBRATION:
        raise ConfigError(f"8 bits need at least {MIN_CALIBRATION} images for calibration; got {len(calibration)}.")
    module = _exportable(predictor, format, masks)
    if dynamic and not module.free_size:
        name = type(predictor.model).__name__
        raise ConfigError(f"{name} is exported for a fixed size and batch: leave out --dynamic.")
    size = tuple(size or default_size(predictor.cfg))
    if min(*size, batch) < 1 or max(size) > MAX_SIDE:
        raise ConfigError(f"the batch must be at least 1 and a side 1 to {MAX_SIDE} pixels; got {batch} and {size}")
    logging.getLogger(__name__).info("Exporting to %s; this takes a while.", format)
    # Avoid 1 and multiples of 32 as example sizes, because they could become constants of the graph.
    program = trace(module, (75, 106), 2, True, dtype) if dynamic else trace(module, size, batch, False, dtype)
    information = export_metadata(predictor, module, masks, *((None, None) if dynamic else (size, batch)), dtype)
    result = Export(program, information, format, module.output_names, dynamic)
    if calibration:
        reader = ExportedPredictor.of(None, information)
        files = tqdm(calibration, desc="calibrating", unit="image", leave=False, disable=not is_terminal())
        seen = (seen_by_network(reader, file, index) for index, file in enumerate(files))
        result.quantize(module.eight_bit_modules, seen)
    return result


def export_metadata(predictor: Predictor, module, masks: str, size, batch, dtype=torch.uint8) -> dict:
    """What a program that runs the file needs to know, as plain data; size and batch are None where they are free."""
    cfg = predictor.cfg
    outputs = {
        "boxes": "(B, D, 4) float32 x1, y1, x2, y2 in pixels of the output",
        "scores": "(B, D) float32, 0 for what is no detection",
        "labels": "(B, D) int64, index of class_names",
        "masks": _MASK_TEXT[masks],
        "windows": "(B, D, 4) float32, the boxes that the crops fill, in pixels of the output",
        "sem_seg": "(B, height, width) int64, the best semantic class of every pixel: 0 a thing, others of stuff_names",
    }
    information = {
        "version": VERSION,
        "method": type(predictor.model).__name__,
        "inputs": {
            "images": "(B, 3, H, W), RGB, 0-255, not normalised",
            "image_size": "(2,) int64: rows and columns of the images that are picture, the rest is padding",
            "output_size": "(2,) int64: height and width of the output",
        },
        "outputs": {name: outputs[name] for name in module.output_names},
        "masks": None,
        "channel_order": "RGB",
        "dtype": str(dtype).replace("torch.", ""),
        "precision": "float32",
        "batch": batch,
        "size": size and list(size),
        "min_side": MIN_SIDE,  # of a free size
        "fills_canvas": module.fills_canvas,
        "value_range": predictor.value_range,  # for images with more than 8 bits: the values that become 0 and 255
        "shortest_side": cfg.INPUT.MIN_SIZE_TEST,
        "longest_side": cfg.INPUT.MAX_SIZE_TEST,
        "tile": list(predictor.tile),  # (side, overlap) of the tiles of large images; []: images are not cut
        "max_detections": module.detections,
        "class_names": predictor.class_names,
        "category_ids": predictor.category_ids,
        "stuff_names": predictor.stuff_names if module.combination else None,
        "panoptic": module.combination and module.combination._asdict(),  # how instances and sem_seg become one map
        "torch": torch.__version__,
    }
    if "masks" in module.output_names:
        information["masks"] = {"form": "full"} if masks == "full" else module.mask_information()
        if masks != "full":
            information["mask_patch"] = Path(compact_masks.__file__).read_text(encoding="utf-8")
    return information
