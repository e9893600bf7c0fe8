"""Runs exported models with the interface of the predictor. N images, D detections an image."""

import json
import warnings
from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from ..checkpoint.identify import other_format
from ..errors import ConfigError
from ..inference.image_predictor import ImagePredictor
from ..modeling.postprocessing import Combination, RunLengthMasks, check_mask_format, masks_to_boxes
from ..runtime import sessions
from ..runtime.model import Detections, detections, fitting_size, network_size
from ..runtime.sessions import INPUTS, METADATA, SESSIONS, open_session

__all__ = ["ExportedPredictor", "ResizeToFit", "network_inputs"]


class ResizeToFit(T.Augmentation):
    """
    The resizing that an exported file's metadata ask for, see `runtime.model.fitting_size`: Detectron2's
    ResizeShortestEdge, but an image that would not fit into the canvas becomes smaller.
    """

    def __init__(self, metadata: dict):
        super().__init__()
        self.metadata = metadata

    def get_transform(self, image) -> T.Transform:
        return T.ResizeTransform(*image.shape[:2], *fitting_size(image.shape[:2], self.metadata))


class Pt2Session:
    """A .pt2 file of torch.export. ``trust``: see `ExportedPredictor`."""

    runtime = "PyTorch"
    on_cpu = True

    def __init__(self, path: str, trust: bool):
        if not trust:
            raise ConfigError(
                f"{path} is not loaded, because PyTorch runs whatever code a .pt2 file holds: if you trust its source, "
                "say so with --trust (trust=True); an .onnx file needs none."
            )
        files = {METADATA: ""}
        with warnings.catch_warnings():  # it warns about its own way of reading weights
            warnings.simplefilter("ignore")
            self.module = torch.export.load(path, extra_files=files).module()
        self.text = files[METADATA]
        self._names = tuple(json.loads(self.text)["outputs"]) if self.text else ()

    @torch.no_grad()
    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.module(*(torch.from_numpy(inputs[name]) for name in INPUTS))
        return {name: value.numpy() for name, value in zip(self._names, found)}


def network_inputs(inputs: Sequence[dict], metadata: dict) -> dict[str, np.ndarray]:
    """Preprocessed images that share one size and one output size, as inputs of a file with this metadata."""
    height, width = inputs[0]["image"].shape[-2:]
    count = metadata["batch"] or len(inputs)
    images = np.zeros((count, 3, *network_size((height, width), metadata)), dtype=metadata["dtype"])
    for image, x in zip(images, inputs):
        image[:, :height, :width] = x["image"].numpy()
    size = np.array([inputs[0]["height"], inputs[0]["width"]])
    return {"images": images, "image_size": np.array([height, width]), "output_size": size}


class ExportedPredictor(ImagePredictor):
    """
    An exported model with the interface of `instseg_d2.engine.Predictor`.

    Only images of the same size run together, so that padding does not change their results. Unlike the PyTorch model
    it leaves out detections with score 0.

    Args:
        path: .onnx, .xml or .pt2 file of `export`; it contains its metadata.
        trust: also load .pt2 files; PyTorch runs any code that such a file contains.
        parallel: number of threads that will call it at the same time.

    Attributes:
        session: dict of arrays -> dict of arrays, see `runtime.sessions`.
        metadata: what the file says about itself; and the attributes of `ImagePredictor`.

    Raises:
        FileNotFoundError, ConfigError: the file is missing, of another kind or not trusted, or a package is missing.
    """

    def __init__(self, path: str, trust: bool = False, parallel: int = 1):
        kinds = {**SESSIONS, ".pt2": lambda path, threads, parallel: Pt2Session(path, trust)}
        threads = torch.get_num_threads()
        self._describe(*open_session(path, threads, parallel, kinds=kinds, other_format=other_format))

    @classmethod
    def of(cls, session, metadata: dict) -> "ExportedPredictor":
        """The predictor of an open session; with None it only preprocesses images."""
        predictor = cls.__new__(cls)
        predictor._describe(session, metadata)
        return predictor

    def _describe(self, session, metadata: dict) -> None:
        self.session, self.metadata = session, metadata
        self.class_names = self.metadata["class_names"]
        self.category_ids = {int(index): value for index, value in self.metadata["category_ids"].items()}
        self.stuff_names = self.metadata.get("stuff_names")
        self.input_format = self.metadata["channel_order"]
        self.value_range = tuple(self.metadata.get("value_range", ()))
        self.resize = ResizeToFit(self.metadata)
        self.tile = tuple(self.metadata.get("tile", ()))
        self.further_output = "a panoptic map" if self.metadata.get("panoptic") else ""

    @property
    def on_cpu(self) -> bool:
        return self.session.on_cpu

    @property
    def batches(self) -> bool:
        return (self.metadata["batch"] or 1) > 1 or not self.on_cpu

    def canvas(self, image: torch.Tensor) -> tuple[int, int]:
        return network_size(image.shape[-2:], self.metadata)

    def run(self, inputs: Sequence[dict]) -> list[dict]:
        """
        Run preprocessed images that share one size and one output size. If the file's batch is fixed, there may be at
        most that many. Returns the file's outputs for each image, arrays of D detections.
        """
        found = sessions.run(self.session, network_inputs(inputs, self.metadata))
        return [{name: value[index] for name, value in found.items()} for index in range(len(inputs))]

    def outputs(self, inputs: Sequence[dict], score_threshold: float = 0.0, masks: str = "full") -> list[dict]:
        check_mask_format(masks)
        groups: dict[tuple, list[int]] = {}
        for index, x in enumerate(inputs):
            groups.setdefault((x["image"].shape, x["height"], x["width"]), []).append(index)
        results = {}
        for (shape, height, width), members in groups.items():
            step = self.metadata["batch"] or len(members)
            for start in range(0, len(members), step):
                part = members[start : start + step]
                for index, found in zip(part, self.run([inputs[i] for i in part])):
                    one = detections(found, self.metadata, shape[-2:], (height, width), score_threshold)
                    instances = to_instances(one, masks)
                    results[index] = {"instances": instances, **self._panoptic(one.sem_seg, instances)}
        return [results[index] for index in range(len(inputs))]

    def _panoptic(self, sem_seg: Optional[np.ndarray], instances: Instances) -> dict:
        """
        The rest of a panoptic model's output: "sem_seg", here (H, W) int64 classes, and "panoptic_seg" if there are
        masks.
        """
        if sem_seg is None:
            return {}
        result = {"sem_seg": torch.from_numpy(sem_seg)}
        if instances.has("pred_masks"):
            result["panoptic_seg"] = Combination(**self.metadata["panoptic"])(instances, result["sem_seg"])
        return result


def to_instances(found: Detections, masks: str) -> Instances:
    """Detections as Detectron2's Instances; ``masks`` as in `InstanceSegmenter.detect`."""
    result = Instances(found.size)
    result.scores = torch.from_numpy(found.scores)
    result.pred_classes = torch.from_numpy(found.labels)
    if found.has_masks and masks == "full":
        result.pred_masks = torch.from_numpy(found.masks())
    elif found.has_masks and masks == "run_lengths":
        result.pred_masks = RunLengthMasks.of_patches((found.patch(i) for i in range(len(found))), found.size)
    if found.boxes is None:  # a file of the first version
        result.pred_boxes = Boxes(masks_to_boxes(torch.from_numpy(found.masks())))
    else:
        result.pred_boxes = Boxes(torch.from_numpy(found.boxes))
    return result
