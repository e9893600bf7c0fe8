"""Base class of the meta-architectures: preprocessing, inference, output format. N images, D detections."""

from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch
from detectron2.structures import ImageList, Instances, ROIMasks
from torch import nn

from ..checkpoint.authors import convert_state_dict
from ..errors import DatasetError
from .ground_truth import ensure_masks
from .postprocessing import check_mask_format, filter_detections, place_boxes, postprocess_in_chunks, set_mask_format


class InstanceSegmenter(nn.Module):
    """
    Base class of the meta-architectures.

    Subclasses implement `infer` and ``losses(images, batched_inputs)``, which returns a dict of scalars. They override
    `postprocess` if their masks are not predicted inside boxes, and `output` if they return more than instances.

    Args:
        backbone: a Detectron2 backbone.
        pixel_mean, pixel_std: one value per channel, in the order of ``input_format``, on the scale 0-255.
        input_format: "BGR" or "RGB", the channel order of the input.
        mask_threshold: minimum probability of a pixel of a pasted mask.
        training_only: {name: module} of parts that only training has. Their weights are in the trainer's state, not
            among the model's in a checkpoint.
    """

    predicts_masks = True

    def __init__(
        self,
        *,
        backbone: nn.Module,
        pixel_mean,
        pixel_std,
        input_format: str = "BGR",
        mask_threshold: float = 0.5,
        training_only: Optional[dict[str, nn.Module]] = None,
    ):
        super().__init__()
        self.backbone = backbone
        self.training_only = nn.ModuleDict(training_only)
        self.input_format = input_format
        self.mask_threshold = mask_threshold
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    def load_state_dict(self, state_dict, *args, **kwargs):
        """Like ``nn.Module.load_state_dict``, but also accepts the authors' parameter names."""
        return super().load_state_dict(convert_state_dict(state_dict), *args, **kwargs)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def size_divisibility(self) -> int:
        """Height and width of the padded input are multiples of this."""
        return self.backbone.size_divisibility

    def preprocess(self, batched_inputs: Sequence[dict]) -> ImageList:
        """
        Normalise the images and zero-pad them right and below to a multiple of `size_divisibility`.

        A single small image is padded further in training, because batch norm needs more than one cell in the coarsest
        map.
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
        """Subtract the mean and divide by the standard deviation: (..., 3, H, W) 0-255 -> float32."""
        return (images - self.pixel_mean) / self.pixel_std

    @staticmethod
    def shared_arguments(cfg) -> dict:
        """The arguments of this class that all methods read from the same config keys."""
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
        Move the ground truth of a training batch to the model's device.

        Raises:
            DatasetError: a sample has no ground truth, or no masks for a method that needs them.
        """
        for x in batched_inputs:
            if "instances" not in x:
                raise DatasetError(
                    f"the training sample {x.get('file_name', x.get('image_id', '?'))} has no 'instances'; an image "
                    "without objects needs empty ones."
                )
        instances = [x["instances"].to(self.device) for x in batched_inputs]
        return ensure_masks(instances, self) if self.predicts_masks else instances

    def forward(self, batched_inputs: Sequence[dict]):
        """
        Args:
            batched_inputs: dicts of Detectron2's mappers: ``image`` (3, H, W) 0-255, ``instances`` in training, and
                the requested output ``height`` and ``width`` (default: the image's).

        Returns:
            a dict of scalar losses in training, else the result of `detect`.
        """
        if self.training:
            return self.losses(self.preprocess(batched_inputs), batched_inputs)
        return self.detect(batched_inputs)

    @torch.no_grad()
    def detect(self, batched_inputs: Sequence[dict], score_threshold: float = 0.0, masks: str = "full") -> list[dict]:
        """
        Detect the objects of a batch; all inference of the package goes through this method.

        Detections with a score below the threshold, or with a score or box that is not finite, are dropped before
        full-size masks are made.

        Args:
            batched_inputs: see `forward`.
            score_threshold: minimum score.
            masks: "full" for pred_masks (D, height, width) bool; "run_lengths" for `RunLengthMasks`, which are encoded
                a few masks at a time; "none" for no masks.

        Returns:
            one {"instances": Instances} per image with pred_boxes, scores, pred_classes and, if the method predicts
            masks, pred_masks; a method may add other keys.

        Raises:
            ValueError: unknown ``masks``.
        """
        check_mask_format(masks)
        images = self.preprocess(batched_inputs)
        outputs = []
        for found, (height, width), x in zip(self.infer(images), images.image_sizes, batched_inputs):
            found = {**found, "instances": filter_detections(found["instances"], score_threshold)}
            outputs.append(self.output(found, (x.get("height", height), x.get("width", width)), masks))
        return outputs

    def infer(self, images: ImageList) -> list[dict]:
        """Run the network: one {"instances": Instances in input pixels} per image, plus whatever `output` reads."""
        raise NotImplementedError

    def postprocess(self, result: Instances, size: tuple, masks: bool = True) -> Instances:
        """
        Rescale detections from input pixels to an output of ``size`` (H, W). The default equals Detectron2's
        ``detector_postprocess``: scale and clip boxes, drop empty ones, paste masks (D, 1, R, R) into the boxes.

        Args:
            masks: whether pred_masks are needed.
        """
        if not masks and result.has("pred_masks"):
            result.remove("pred_masks")
        result = place_boxes(result, size)
        if result.has("pred_masks"):
            pasted = ROIMasks(result.pred_masks[:, 0]).to_bitmasks(result.pred_boxes, *size, self.mask_threshold)
            result.pred_masks = pasted.tensor.bool()  # an empty result comes back as uint8
        return result

    def output(self, found: dict, size: tuple, masks: str) -> dict:
        """Convert one result of `infer` to the output of ``size`` (H, W); ``masks`` as in `detect`."""
        return {"instances": postprocess_in_chunks(found["instances"], size, masks, self.postprocess)}


@torch.no_grad()
def detect(
    model: nn.Module, batched_inputs: Sequence[dict], score_threshold: float = 0.0, masks: str = "full"
) -> list[dict]:
    """`InstanceSegmenter.detect` for any model with Detectron2's inputs and outputs, such as Mask R-CNN."""
    if isinstance(model, InstanceSegmenter):
        return model.detect(batched_inputs, score_threshold, masks)
    check_mask_format(masks)
    outputs = [dict(output) for output in model(list(batched_inputs))]
    for output in outputs:
        if "instances" in output:
            output["instances"] = set_mask_format(filter_detections(output["instances"], score_threshold), masks)
    return outputs
