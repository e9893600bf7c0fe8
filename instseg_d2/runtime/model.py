"""An exported model from an image to detections. D detections, H x W pixels."""

import dataclasses
import os
from typing import Optional

import cv2
import numpy as np

from ..errors import ConfigError, ImageError
from .masks import mask_patch
from .sessions import open_session, run

__all__ = ["Detections", "Model", "detections", "fitting_size", "network_size", "read_image", "resize"]


BITS = 22  # of the weights of resizing, which are integers in Pillow, too


def read_image(path: str) -> np.ndarray:
    """
    The image of a file: (H, W, 3) uint8, RGB, turned as its EXIF data say.

    Raises:
        ImageError: it cannot be read.
    """
    image = cv2.imread(os.fspath(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ImageError(f"{path}: cannot be read as an image.")
    return np.ascontiguousarray(image[..., ::-1])


def _axis(before: int, after: int):
    """For each of ``after`` pixels: those that antialiased bilinear resizing reads (after, taps), their weights."""
    ratio = before / after
    reach = max(ratio, 1.0)
    centre = (np.arange(after) + 0.5) * ratio
    first = np.maximum((centre - reach + 0.5).astype(int), 0)
    index = first[:, None] + np.arange(int(2 * reach) + 2)
    weights = (1 - abs((index + 0.5 - centre[:, None]) / reach)).clip(0) * (index < before)
    weights = weights / weights.sum(1, keepdims=True)
    return index.clip(max=before - 1), (weights * (1 << BITS) + 0.5).astype(np.int32)


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 -> (*size, 3) uint8, antialiased and bilinear: what Pillow does, which the models learn from."""
    for axis in (1, 0):
        if image.shape[axis] == size[axis]:
            continue
        index, weights = _axis(image.shape[axis], size[axis])
        total = np.int32(1 << (BITS - 1))
        for tap in range(index.shape[1]):
            part = image.take(index[:, tap], axis=axis).astype(np.int32)
            total = total + part * (weights[:, tap, None] if axis == 1 else weights[:, tap, None, None])
        image = (total >> BITS).clip(0, 255).astype(np.uint8)
    return image


def fitting_size(size: tuple, metadata: dict) -> tuple[int, int]:
    """
    The size (H, W) that an image is resized to for a file with this metadata: its shortest and its longest side have
    limits, and it fits into the network's input.
    """
    canvas, shortest, longest = metadata["size"], metadata["shortest_side"], metadata["longest_side"]
    if metadata.get("fills_canvas"):
        return tuple(canvas)
    now = list(size)
    if shortest:  # 0 keeps the image's own size
        now = [float(shortest) if side == min(size) else shortest / min(size) * side for side in size]
        now = [side * min(1.0, longest / max(now)) for side in now]
        now = [int(side + 0.5) for side in now]
    if canvas:
        scale = min(1.0, *(limit / side for limit, side in zip(canvas, now)))
        now = [max(1, int(side * scale + 0.5)) for side in now]
    return tuple(now)


def network_size(size: tuple, metadata: dict) -> tuple[int, int]:
    """(H, W) of the network's input for an image resized to ``size``."""
    return tuple(metadata["size"] or (max(side, metadata.get("min_side", 33)) for side in size))


@dataclasses.dataclass
class Detections:
    """
    What a model found in an image, best first.

    Attributes:
        boxes: (D, 4) float32 x1, y1, x2, y2, pixels of the image.
        scores: (D,) float32; labels: (D,) int64 index of the class names.
        size: (H, W) of the image.
        sem_seg: (H, W) int64, the semantic class of every pixel, 0 for things; None: the model is not panoptic.
    """

    boxes: Optional[np.ndarray]
    scores: np.ndarray
    labels: np.ndarray
    size: tuple
    _masks: Optional[np.ndarray]
    _place: tuple  # windows, network size, size of the image in it
    _information: Optional[dict]
    sem_seg: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.scores)

    def _select(self, index: np.ndarray) -> "Detections":
        """Those of a (D,) bool array; there must be boxes and masks."""
        fields = {name: getattr(self, name)[index] for name in ("boxes", "scores", "labels", "_masks")}
        return dataclasses.replace(self, **fields, _place=(self._place[0][index], *self._place[1:]))

    @property
    def has_masks(self) -> bool:
        return self._masks is not None

    def patch(self, index: int):
        """The part of a mask that is not empty: its first row, its first column, and (h, w) bool."""
        if not self.has_masks:
            raise ValueError("this model makes no masks")
        if self._information["form"] == "full":
            return 0, 0, self._masks[index]
        windows, *sizes = self._place
        return mask_patch(self._masks[index], windows[index], *sizes, self.size, self._information)

    def mask(self, index: int) -> np.ndarray:
        """The mask of one detection: (H, W) bool."""
        y, x, part = self.patch(index)
        result = np.zeros(self.size, dtype=bool)
        result[y : y + part.shape[0], x : x + part.shape[1]] = part
        return result

    def masks(self) -> np.ndarray:
        """All masks: (D, H, W) bool. For many detections in a large image `mask` and `patch` need less memory."""
        result = np.zeros((len(self), *self.size), dtype=bool)
        for index, mask in enumerate(result):
            y, x, part = self.patch(index)
            mask[y : y + part.shape[0], x : x + part.shape[1]] = part
        return result


def detections(found: dict, metadata: dict, image_size: tuple, size: tuple, score_threshold: float) -> Detections:
    """
    The detections of one image from the outputs of an exported file.

    Args:
        found: the outputs of the image, arrays of D detections, and the semantic map if there is one.
        image_size: (H, W) of the image in the network's input; size: of the output.
        score_threshold: lowest score of a detection.
    """
    keep = np.flatnonzero((found["scores"] > 0) & (found["scores"] >= score_threshold))
    keep = keep[np.argsort(-found["scores"][keep], kind="stable")][: metadata["max_detections"]]
    sem_seg = found.get("sem_seg")
    found = {name: value[keep] for name, value in found.items() if name != "sem_seg"}
    place = found.get("windows", found.get("boxes")), network_size(image_size, metadata), image_size
    masks = metadata.get("masks") or {"form": "full"}
    result = Detections(
        found.get("boxes"), found["scores"], found["labels"], tuple(size), found.get("masks"), place, masks, sem_seg
    )
    if masks.get("tight_boxes"):  # the compact masks say only roughly where these are
        result.boxes = np.zeros((len(result), 4), dtype=np.float32)
        for index, box in enumerate(result.boxes):
            y, x, part = result.patch(index)
            rows, columns = np.flatnonzero(part.any(1)), np.flatnonzero(part.any(0))
            if len(rows):
                box[:] = x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1
        if masks["form"] == "crops":  # empty ones are no detections there
            return result._select(result.boxes[:, 2] > result.boxes[:, 0])
    return result


class Model:
    """
    An exported model.

    Args:
        path: .onnx or .xml file of `instseg export`.
        threads: of the CPU; default: the runtime's.

    Attributes:
        class_names: list of str, or None; category_ids: {label: id of the data set}.
        stuff_names: names of a panoptic model's semantic classes, or None.
        metadata: what the file says about itself.

    Raises:
        FileNotFoundError, ConfigError: the file is missing, of another kind or damaged, or a package is missing.
    """

    def __init__(self, path: str, threads: Optional[int] = None):
        self._session, self.metadata = open_session(os.fspath(path), threads)
        if "version" not in self.metadata:
            raise ConfigError(f"{path} was exported by an older version, without boxes: export it again.")
        self.class_names = self.metadata["class_names"]
        self.category_ids = {int(index): value for index, value in self.metadata["category_ids"].items()}
        self.stuff_names = self.metadata.get("stuff_names")

    def __call__(self, image: np.ndarray, score_threshold: float = 0.0) -> Detections:
        """
        Args:
            image: (H, W, 3) uint8, RGB.
            score_threshold: lowest score of a detection.

        Raises:
            ValueError: another shape or type.
        """
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
            raise ValueError(f"an image is an array (H, W, 3) of uint8; got {getattr(image, 'shape', type(image))}")
        size = fitting_size(image.shape[:2], self.metadata)
        images = np.zeros((self.metadata["batch"] or 1, 3, *network_size(size, self.metadata)), self.metadata["dtype"])
        images[0, :, : size[0], : size[1]] = resize(image, size).transpose(2, 0, 1)
        sizes = {"image_size": np.array(size), "output_size": np.array(image.shape[:2])}
        found = {name: value[0] for name, value in run(self._session, {"images": images, **sizes}).items()}
        return detections(found, self.metadata, size, image.shape[:2], score_threshold)
