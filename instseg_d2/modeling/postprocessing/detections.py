"""Filters detections and sets the format of their masks. D detections, H x W output pixels."""

from collections.abc import Callable

import torch
from detectron2.structures import Boxes, Instances
from torchvision.ops import clip_boxes_to_image

from ...layers import check_choice
from .run_lengths import RunLengthMasks

MASK_FORMATS = ("full", "run_lengths", "none")

# Mask pixels per chunk at output size. Each takes 1 byte, or 12 while Detectron2 pastes masks on a GPU.
MASK_PIXELS = 1 << 26


def filter_detections(result: Instances, score_threshold: float = 0.0) -> Instances:
    """
    Keep detections with a score of at least the threshold and a finite score and box.

    Networks in half precision may overflow.
    """
    keep = result.scores.isfinite() & (result.scores >= score_threshold)
    if result.has("pred_boxes"):
        keep = keep & result.pred_boxes.tensor.isfinite().all(1)
    return select_detections(result, keep)


def select_detections(result: Instances, keep: torch.Tensor) -> Instances:
    """
    Keep the detections where ``keep`` (D,) bool is True, without a copy if all are.

    The host waits for the device once. When Instances are indexed with a mask, it waits once per field.
    """
    index = keep.nonzero()[:, 0]
    return result if len(index) == len(result) else result[index]


def place_boxes(result: Instances, size: tuple) -> Instances:
    """
    Scale boxes from input pixels to an output of ``size`` (H, W), clip them and drop empty ones, as Detectron2's
    ``detector_postprocess`` does; the host waits for the device once.
    """
    (height, width), old = size, result.image_size
    boxes = result.pred_boxes.clone()
    boxes.scale(width / old[1], height / old[0])
    result = Instances((height, width), **result.get_fields())
    result.pred_boxes = Boxes(clip_boxes_to_image(boxes.tensor, size))
    return select_detections(result, result.pred_boxes.nonempty())


def topk_in_order(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Indices of the ``count`` highest scores (D,), in ascending order of index; NaN ranks lowest."""
    return scores.nan_to_num(nan=-torch.inf).topk(count).indices.sort().values


def check_mask_format(masks: str) -> None:
    """
    Raises:
        ValueError: ``masks`` is not one of `MASK_FORMATS`.
    """
    check_choice("masks", masks, MASK_FORMATS)


def set_mask_format(instances: Instances, masks: str) -> Instances:
    """Convert or drop pred_masks (D, H, W), as ``masks`` (one of `MASK_FORMATS`) requires."""
    fields = instances.get_fields()
    if masks == "none":
        fields = {name: value for name, value in fields.items() if name != "pred_masks"}
    elif masks == "run_lengths" and "pred_masks" in fields:
        fields = {**fields, "pred_masks": RunLengthMasks.encode(fields["pred_masks"].bool())}
    return Instances(instances.image_size, **fields)


def postprocess_in_chunks(result: Instances, size: tuple, masks: str, postprocess: Callable) -> Instances:
    """
    Postprocess a few detections at a time, so that a chunk has at most `MASK_PIXELS` mask pixels.

    Args:
        result: detections in input pixels.
        size: (H, W) of the output.
        masks: one of `MASK_FORMATS`.
        postprocess: see `InstanceSegmenter.postprocess`.

    Returns:
        the detections in output pixels.
    """
    step = max(1, MASK_PIXELS // (size[0] * size[1]))
    if masks == "full" and len(result) <= step:
        return postprocess(result, size)
    full, parts, count = None, [], 0
    for start in range(0, max(len(result), 1), step):
        part = postprocess(result[start : start + step], size, masks != "none")
        if masks == "full" and part.has("pred_masks"):
            if full is None:
                full = part.pred_masks.new_empty((len(result), *size))
            full[count : count + len(part)] = part.pred_masks
            part.remove("pred_masks")
        parts.append(set_mask_format(part, masks))
        count += len(part)
    whole = Instances.cat(parts)
    if full is not None:
        whole.pred_masks = full[:count]
    return whole
