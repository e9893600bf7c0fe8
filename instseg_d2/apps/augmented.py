"""Draws training samples as the model gets them: augmented, with their masks and boxes."""

import contextlib
import itertools
import os

import numpy as np
from detectron2.structures import Instances

from ..data import build_train_loader, class_names
from ..modeling.ground_truth import image_masks
from ..visualization import draw_instances, titled_grid
from .runs import write_jpeg

__all__ = ["draw_augmented"]


def _drawn(sample: dict, image_format: str, names: list) -> np.ndarray:
    """A sample's image (H, W, 3) RGB with its objects."""
    truth, image = sample["instances"], sample["image"].permute(1, 2, 0).numpy()
    shown = Instances(truth.image_size, pred_boxes=truth.gt_boxes, pred_classes=truth.gt_classes)
    if truth.has("gt_masks"):
        shown.pred_masks = image_masks(truth)
    return draw_instances(image[..., ::-1] if image_format == "BGR" else image, shown, names)


def draw_augmented(cfg, count: int) -> str:
    """
    Draw the first ``count`` training samples of a config in OUTPUT_DIR/augmented.jpg.

    Returns:
        the name of the file.
    """
    names = class_names(cfg.DATASETS.TRAIN[0])
    with contextlib.closing(iter(build_train_loader(cfg))) as batches:
        samples = list(itertools.islice(itertools.chain.from_iterable(batches), count))
    panels = [(os.path.basename(x["file_name"]), _drawn(x, cfg.INPUT.FORMAT, names)) for x in samples]
    path = os.path.join(cfg.OUTPUT_DIR, "augmented.jpg")
    write_jpeg(path, titled_grid(panels))
    return path
