"""What every meta-architecture of this package does alike: input, output, the way between. N images."""

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import ImageList, Instances
from torch import nn

from ..checkpoint.authors import convert_state_dict
from ..errors import ConfigError
from .ground_truth import with_masks
from .postprocessing import RunLengthMasks

# Of masks of full size that are made at a time: a byte each, 12 while Detectron2 pastes them on a GPU.
MASK_PIXELS = 1 << 26


def finite(result: Instances) -> Instances:
    """The detections whose score and box are numbers: half precision may overflow inside a network."""
    keep = result.scores.isfinite()
    if result.has("pred_boxes"):
        keep = keep & result.pred_boxes.tensor.isfinite().all(1)
    return result if keep.all() else result[keep]


def pasted(result: Instances, height: int, width: int, threshold: float) -> Instances:
    """
    Detectron2's ``detector_postprocess``, some masks of full size at a time: boxes are scaled and clipped, empty ones
    dropped, and each mask (D, 1, R, R) is pasted into its clipped box.
    """
    step = max(1, MASK_PIXELS // (height * width))
    if len(result) <= step or not result.has("pred_masks"):
        result = detector_postprocess(result, height, width, threshold)
        if result.has("pred_masks"):
            result.pred_masks = result.pred_masks.bool()  # an empty result comes back as uint8
        return result
    masks = torch.empty((len(result), height, width), dtype=torch.bool, device=result.scores.device)
    parts, count = [], 0
    for start in range(0, len(result), step):
        part = detector_postprocess(result[start : start + step], height, width, threshold)
        masks[count : count + len(part)] = part.pred_masks
        count += len(part)
        part.remove("pred_masks")
        parts.append(part)
    whole = Instances.cat(parts)
    whole.pred_masks = masks[:count]
    return whole


class InstanceSegmenter(nn.Module):
    """
    Base of the meta-architectures.

    Subclasses write ``losses(images, batched_inputs)`` -> dict of scalars and ``infer(images)`` -> one Instances an
    image in input pixels. Training and inference part on ``self.training`` alone.

    Args:
        backbone: a Detectron2 backbone.
        pixel_mean, pixel_std: of the channels, in the order of ``input_format``, 0-255.
        input_format: "BGR" or "RGB", the order of the input's channels.
        mask_threshold: probability from which a pixel belongs to a pasted mask.
    """

    makes_masks = True
    _run_lengths = False  # see `masks_as_run_lengths`
    class_agnostic = False  # True: every detection is of class 0, "object", whatever classes the data have

    def __init__(
        self, *, backbone: nn.Module, pixel_mean, pixel_std, input_format: str = "BGR", mask_threshold: float = 0.5
    ):
        super().__init__()
        self.backbone = backbone
        self.input_format = input_format
        self.mask_threshold = mask_threshold
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    def load_state_dict(self, state_dict, *args, **kwargs):
        """As of any module; a state dict with its authors' names is one of ours, whoever reads the file."""
        return super().load_state_dict(convert_state_dict(state_dict), *args, **kwargs)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def size_divisibility(self) -> int:
        """The padded input's sides are multiples of it."""
        return self.backbone.size_divisibility

    def preprocess(self, batched_inputs: Sequence[dict]) -> ImageList:
        """
        Normalised images, padded with zeros right and below to multiples of `size_divisibility`; one alone in training
        so far that its coarsest map has several cells, without which a batch norm has no deviation.
        """
        images = [x["image"].to(self.device, non_blocking=True) for x in batched_inputs]
        images = [self.normalize(image) for image in images]
        multiple = self.size_divisibility
        if self.training and len(images) == 1:
            stride = max(shape.stride for shape in self.backbone.output_shape().values())
            if max(images[0].shape[-2:]) <= stride:
                multiple = max(multiple, 2 * stride)
        return ImageList.from_tensors(images, multiple, padding_constraints=self.backbone.padding_constraints)

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """(..., 3, H, W) 0-255 in the order of ``input_format`` -> float32 of mean 0 and deviation 1."""
        return (images - self.pixel_mean) / self.pixel_std

    @staticmethod
    def shared_arguments(cfg) -> dict:
        """The arguments of this class that every method reads alike from a config."""
        return {
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
        }

    def rgb_image(self, sample: dict) -> np.ndarray:
        """The input image of a sample as (H, W, 3) uint8, RGB."""
        image = sample["image"].permute(1, 2, 0).to(torch.uint8).cpu().numpy()
        return np.ascontiguousarray(image if self.input_format == "RGB" else image[..., ::-1])

    def gt_instances(self, batched_inputs: Sequence[dict]) -> list[Instances]:
        """
        The ground truth of a training batch on the model's device.

        Raises:
            ConfigError: a sample has no ground truth, or none of masks for a method that makes them.
        """
        for x in batched_inputs:
            if "instances" not in x:
                raise ConfigError(
                    f"the training sample {x.get('file_name', x.get('image_id', '?'))} has no 'instances': a mapper "
                    "gives them also to an image without objects, of length 0."
                )
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        return with_masks(instances, self) if self.makes_masks else instances

    def forward(self, batched_inputs: Sequence[dict]):
        """
        Args:
            batched_inputs: dicts of Detectron2's mappers: ``image`` (3, H, W) 0-255, ``instances`` in training,
                ``height`` and ``width`` of the wanted output (default: the image's).

        Returns:
            in training a dict of scalar losses, else a list of {"instances": Instances} with pred_boxes, scores,
            pred_classes and, where the method makes masks, pred_masks (D, height, width) bool.
        """
        images = self.preprocess(batched_inputs)
        if self.training:
            return self.losses(images, batched_inputs)
        return self.finish(self.infer(images), batched_inputs)

    def finish(self, results: Sequence[Instances], batched_inputs: Sequence[dict]) -> list[dict]:
        """Results of `infer` -> what `forward` returns in inference."""
        postprocess = self._postprocess_in_parts if self._run_lengths else self.postprocess
        return postprocess([finite(x) for x in results], batched_inputs)

    @contextlib.contextmanager
    def masks_as_run_lengths(self):
        """Inside, inference gives pred_masks as `RunLengthMasks`: some masks of full size exist at a time, not all."""
        self._run_lengths = True
        try:
            yield
        finally:
            self._run_lengths = False

    def _postprocess_in_parts(self, results: Sequence[Instances], batched_inputs: Sequence[dict]) -> list[dict]:
        """What `postprocess` returns, but with masks as run lengths."""
        outputs = []
        for result, x in zip(results, batched_inputs):
            height, width = (x.get(key, size) for key, size in zip(("height", "width"), result.image_size))
            step = max(1, MASK_PIXELS // (height * width))
            parts = []
            for start in range(0, max(len(result), 1), step):
                (part,) = self.postprocess([result[start : start + step]], [x])
                if part["instances"].has("pred_masks"):
                    part["instances"].pred_masks = RunLengthMasks.encode(part["instances"].pred_masks)
                parts.append(part)
            outputs.append({key: Instances.cat([part[key] for part in parts]) for key in parts[0]})
        return outputs

    def postprocess(self, results: Sequence[Instances], batched_inputs: Sequence[dict]) -> list[dict]:
        """
        Results in input pixels -> results at the requested height and width.

        See `pasted`; methods whose masks are no crops of boxes have their own.
        """
        outputs = []
        for result, x in zip(results, batched_inputs):
            height, width = (x.get(key, size) for key, size in zip(("height", "width"), result.image_size))
            outputs.append({"instances": pasted(result, height, width, self.mask_threshold)})
        return outputs
