"""Runs exported models with the interface of the predictor. B images, N instance slots."""

import json
import os
import warnings
from collections.abc import Sequence

import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from ..checkpoint.identify import other_format
from ..errors import ConfigError
from ..inference.image_predictor import ImagePredictor
from ..modeling.postprocessing import (
    check_mask_format,
    filter_detections,
    masks_to_boxes,
    set_mask_format,
    topk_in_order,
)
from .exporters import INPUTS, METADATA, MIN_SIDE
from .packages import needed

__all__ = ["ExportedPredictor", "ResizeToFit"]


class ResizeToFit(T.Augmentation):
    """
    Detectron2's ResizeShortestEdge, but makes the image smaller if it would not fit into the canvas.

    Args:
        short, longest: limits of the sides in pixels; short 0 keeps the image's own size.
        canvas: (H, W), or None for no such limit.
    """

    def __init__(self, short: int, longest: int, canvas=None):
        super().__init__()
        self.short, self.longest, self.canvas = short, longest, canvas

    def get_transform(self, image) -> T.Transform:
        height, width = image.shape[:2]
        size = (height, width)
        if self.short:
            size = T.ResizeShortestEdge.get_output_shape(height, width, self.short, self.longest)
        if self.canvas:
            scale = min(1.0, *(limit / side for limit, side in zip(self.canvas, size)))
            size = tuple(max(1, int(side * scale + 0.5)) for side in size)
        return T.ResizeTransform(height, width, *size)


class OnnxProgram:
    """An .onnx file in ONNX Runtime, on the GPU if possible."""

    def __init__(self, path: str):
        needed("onnxruntime")
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        self.session = onnxruntime.InferenceSession(path, options, providers=providers)
        self.text = self.session.get_modelmeta().custom_metadata_map.get(METADATA)

    def __call__(self, *inputs: torch.Tensor):
        found = self.session.run(None, {name: x.numpy() for name, x in zip(INPUTS, inputs)})
        return tuple(map(torch.from_numpy, found))


class Pt2Program:
    """A .pt2 file of torch.export."""

    def __init__(self, path: str):
        files = {METADATA: ""}
        with warnings.catch_warnings():  # it warns about its own way of reading weights
            warnings.simplefilter("ignore")
            self.module = torch.export.load(path, extra_files=files).module()
        self.text = files[METADATA]

    @torch.no_grad()
    def __call__(self, *inputs: torch.Tensor):
        return self.module(*inputs)


PROGRAMS = {".onnx": OnnxProgram, ".pt2": Pt2Program}


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type if there is no text."""
    return (str(error) or type(error).__name__).splitlines()[0]


class ExportedPredictor(ImagePredictor):
    """
    An exported model with the interface of `instseg_d2.engine.Predictor`.

    Only images of the same size run together, so that padding does not change their results. Unlike the PyTorch model
    it leaves out instances with score 0, because their masks are empty.

    Args:
        path: .onnx or .pt2 file from `export`; it contains its metadata.
        trust: also load .pt2 files; PyTorch runs any code that such a file contains.

    Attributes:
        program: (images, image_size, output_size) -> (scores, labels, masks), see `modeling.exportable`.
        metadata: see `exporters.metadata`; and those of `ImagePredictor`.

    Raises:
        FileNotFoundError, ConfigError: the file is missing, of another kind or not trusted, or a package is missing.
    """

    def __init__(self, path: str, trust: bool = False):
        kind = PROGRAMS.get(os.path.splitext(path)[1].lower())
        if kind is None:
            raise ConfigError(f"{path}: an exported model is a file of {' or '.join(PROGRAMS)}.")
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: there is no such file")
        if kind is Pt2Program and not trust:
            raise ConfigError(
                f"{path} is not loaded, because PyTorch runs whatever code a .pt2 file holds: if you trust its source, "
                "say so with --trust (trust=True); an .onnx file needs none."
            )
        try:
            self.program = kind(path)
        except ConfigError:
            raise
        except Exception as error:  # the runtimes raise all kinds
            what = other_format(path) or f"damaged, or was not exported here ({first_line(error)})"
            raise ConfigError(f"{path} is {what}.") from error
        if not self.program.text:
            raise ConfigError(f"{path}: carries no metadata of instseg_d2; export it with projects/export.py.")
        self.metadata = json.loads(self.program.text)
        self.class_names = self.metadata["class_names"]
        self.category_ids = {int(index): value for index, value in self.metadata["category_ids"].items()}
        self.input_format = self.metadata["channel_order"]
        self.value_range = tuple(self.metadata.get("value_range", ()))
        sides = self.metadata["shortest_side"], self.metadata["longest_side"]
        self.resize = ResizeToFit(*sides, self.metadata["size"])

    def canvas(self, image: torch.Tensor) -> tuple[int, int]:
        """(H, W) of the network's input for a preprocessed image (3, h, w)."""
        return self.metadata["size"] or tuple(max(side, MIN_SIDE) for side in image.shape[-2:])

    def run(self, inputs: Sequence[dict]):
        """
        Run preprocessed images that share one size and one output size. If the file's batch is fixed, there may be at
        most that many. Returns scores (B, N), labels (B, N) and masks (B, N, height, width) of all slots.
        """
        height, width = inputs[0]["image"].shape[-2:]
        count = self.metadata["batch"] or len(inputs)
        canvas = self.canvas(inputs[0]["image"])
        images = torch.zeros((count, 3, *canvas), dtype=getattr(torch, self.metadata["dtype"]))
        for image, x in zip(images, inputs):
            image[:, :height, :width] = x["image"]
        output_size = torch.tensor([inputs[0]["height"], inputs[0]["width"]])
        found = self.program(images, torch.tensor([height, width]), output_size)
        return tuple(x[: len(inputs)] for x in found)

    def outputs(self, inputs: Sequence[dict], score_threshold: float = 0.0, masks: str = "full") -> list[dict]:
        check_mask_format(masks)
        groups: dict[tuple, list[int]] = {}
        for index, x in enumerate(inputs):
            groups.setdefault((x["image"].shape, x["height"], x["width"]), []).append(index)
        results = {}
        for (_, height, width), members in groups.items():
            step = self.metadata["batch"] or len(members)
            for start in range(0, len(members), step):
                part = members[start : start + step]
                for index, *slots in zip(part, *self.run([inputs[i] for i in part])):
                    found = filter_detections(self._instances((height, width), *slots), score_threshold)
                    results[index] = {"instances": set_mask_format(found, masks)}
        return [results[index] for index in range(len(inputs))]

    def _instances(self, size: tuple, scores, labels, masks) -> Instances:
        keep = (scores > 0).nonzero()[:, 0]
        if len(keep) > self.metadata["max_detections"]:
            keep = keep[topk_in_order(scores[keep], self.metadata["max_detections"])]
        result = Instances(size)
        result.pred_boxes = Boxes(masks_to_boxes(masks[keep]))
        result.scores = scores[keep]
        result.pred_classes = labels[keep]
        result.pred_masks = masks[keep]
        return result
