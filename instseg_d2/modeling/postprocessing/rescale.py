"""Detections in network pixels to the requested image size."""

from detectron2.structures import Boxes, Instances

from .paste import paste_masks


def rescale_instances(result: Instances, height: int, width: int, mask_threshold: float = 0.5) -> Instances:
    """
    Scale and clip the boxes, drop those that end up empty, paste the masks of the rest into the clipped boxes.

    Args:
        result: D detections in input pixels: pred_boxes, scores, pred_classes and optionally pred_masks (D, R, R)
            probabilities inside the boxes. It is not modified.
        height, width: of the wanted output.

    Returns:
        Instances of image size (height, width) with pred_boxes, scores, pred_classes and, if there were masks,
        pred_masks (D', height, width) bool.
    """
    scale_y, scale_x = (out / size for out, size in zip((height, width), result.image_size))
    boxes = result.pred_boxes.tensor * result.pred_boxes.tensor.new_tensor([scale_x, scale_y, scale_x, scale_y])
    boxes = Boxes(boxes)
    boxes.clip((height, width))
    keep = boxes.nonempty()
    scaled = Instances((height, width))
    scaled.pred_boxes = boxes[keep]
    scaled.scores = result.scores[keep]
    scaled.pred_classes = result.pred_classes[keep]
    if result.has("pred_masks"):
        masks = result.pred_masks[keep]
        scaled.pred_masks = paste_masks(masks, scaled.pred_boxes.tensor, (height, width), mask_threshold)
    return scaled
