"""Base of the predictors for PyTorch and exported models. D detections, H x W pixels."""

import os
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Optional, Union

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.structures import Instances
from PIL import Image, ImageOps

from ..data.eight_bits import three_channels
from ..data.images import read_image
from ..visualization.overlay import class_name

__all__ = ["ImagePredictor", "to_rgb"]

ImageLike = Union[str, os.PathLike, Image.Image, np.ndarray]


def to_rgb(image: ImageLike, channel_order: str = "BGR", value_range=()) -> np.ndarray:
    """
    Convert any image to (H, W, 3) uint8 RGB.

    Args:
        image: path, PIL image, or array of real numbers (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), the last with alpha.
        channel_order: order of an array's channels, "BGR" (as in OpenCV) or "RGB"; ignored for paths and PIL images.
        value_range: (low, high) that become 0 and 255 in images other than uint8; empty: estimated from the image.

    Raises:
        ImageError: the file is missing or not a readable image.
        ValueError: an array has another shape or type.
    """
    if channel_order not in ("BGR", "RGB"):
        raise ValueError(f'channel_order must be "BGR" or "RGB"; got {channel_order!r}')
    if isinstance(image, (str, os.PathLike)):
        return read_image(os.fspath(image), "RGB", value_range=value_range)
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        return three_channels(np.array(image if image.mode[0] in "FI" else image.convert("RGB")), value_range)
    shape = getattr(image, "shape", None)
    fits = isinstance(image, np.ndarray) and image.dtype.kind in "buif" and image.size > 0
    if not fits or not (image.ndim == 2 or (image.ndim == 3 and shape[2] in (1, 3, 4))):
        kind = type(image).__name__ if shape is None else f"{type(image).__name__} {tuple(shape)} {image.dtype}"
        raise ValueError(f"image must be a path, a PIL image or an array of numbers (H, W[, 1, 3 or 4]); got {kind}")
    pixels = three_channels(image, value_range)
    return np.ascontiguousarray(pixels if channel_order == "RGB" else pixels[:, :, ::-1])


class ImagePredictor:
    """
    Base class of the predictors. A subclass sets the attributes and implements ``outputs``.

    Attributes:
        class_names: list or None; stuff_names: those of a panoptic model's semantic labels, or None.
        category_ids: {contiguous class index: id in the data set}, for the classes that have one.
        input_format: "BGR" or "RGB", the channel order of the inputs of ``outputs``.
        resize: Detectron2's augmentation at test time.
        value_range: (low, high) that become 0 and 255 in images of more than eight bits; (): estimated per image.
        on_cpu: whether it runs there.
        batches: whether it runs several images faster together than one by one.
        settings: what else decides the results, {name: value}.
        tile: (side, overlap) of the tiles on which the model is tested, see `TiledPredictor`; (): on whole images.
        further_output: what it predicts besides instances with boxes and masks, such as "a panoptic map"; "": nothing.
    """

    class_names: Optional[list] = None
    stuff_names: Optional[list] = None
    category_ids: dict
    input_format: str
    resize: T.Augmentation
    value_range: tuple = ()
    on_cpu: bool
    batches: bool
    settings: Mapping = MappingProxyType({})
    tile: tuple = ()
    further_output: str = ""

    def class_name(self, index: int) -> str:
        """The name of a contiguous class index."""
        return class_name(self.class_names, index)

    def category_id(self, index: int) -> int:
        """The data set's id of a contiguous class index; the index itself if unknown."""
        return self.category_ids.get(index, index)

    def preprocess(self, image: ImageLike, channel_order: str = "BGR") -> dict:
        """Detectron2's input record of an image, resized as at test time, with channels in the order of `outputs`."""
        rgb = to_rgb(image, channel_order, self.value_range)
        resized = self.resize.get_transform(rgb).apply_image(rgb)
        if self.input_format == "BGR":
            resized = resized[:, :, ::-1]
        tensor = torch.from_numpy(resized.transpose(2, 0, 1).copy())
        return {"image": tensor, "height": rgb.shape[0], "width": rgb.shape[1]}

    def canvas(self, image: torch.Tensor) -> tuple[int, int]:
        """(H, W) of the network's input for a preprocessed image (3, h, w)."""
        raise NotImplementedError

    def batch_key(self, record: dict) -> tuple:
        """Preprocessed images with the same key can run together, and their results do not change."""
        return tuple(record["image"].shape), record["height"], record["width"]

    def outputs(self, inputs: Sequence[dict], score_threshold: float = 0.0, masks: str = "full") -> list[dict]:
        """
        The results for preprocessed images, at their original sizes, on the CPU.

        Args:
            inputs: from :meth:`preprocess`.
            score_threshold, masks: see :meth:`InstanceSegmenter.detect`.

        Returns:
            {"instances": Instances} for each image; a panoptic model adds "panoptic_seg", and its file also "sem_seg".
        """
        raise NotImplementedError

    def predict(self, inputs: Sequence[dict], score_threshold: float = 0.0, masks: str = "full") -> list[Instances]:
        """Only the instances, see :meth:`outputs`."""
        return [output["instances"] for output in self.outputs(inputs, score_threshold, masks)]

    def __call__(self, image: ImageLike, channel_order: str = "BGR") -> Instances:
        """
        The instances of one image.

        Args:
            image, channel_order: see :func:`to_rgb`.

        Returns:
            Instances on the CPU with pred_boxes (pixels of the given image, XYXY), scores, pred_classes and, if the
            model predicts masks, pred_masks (D, H, W) bool.
        """
        return self.batch([image], channel_order)[0]

    def batch(self, images: Iterable[ImageLike], channel_order: str = "BGR") -> list[Instances]:
        """The instances of several images, run through the network together; in tiles if the model is tested so."""
        from .tiles import in_tiles

        predictor = in_tiles(self)
        inputs = [predictor.preprocess(image, channel_order) for image in images]
        return predictor.predict(inputs) if inputs else []

    def explain(self, image: ImageLike, max_instances: int = 4, channel_order: str = "BGR") -> list:
        """
        What the network sees, as panels (title, (H, W, 3) uint8 RGB picture); [] if the model has none.

        Args:
            image, channel_order: see :func:`to_rgb`.
            max_instances: number of best detections to explain.
        """
        return []
