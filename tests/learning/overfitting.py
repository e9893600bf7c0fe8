"""Trains on a few images of shapes and evaluates on the same images."""

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog

from instseg_d2.config import load_config, set_num_classes
from instseg_d2.data import class_names, register_coco
from instseg_d2.data.shapes.drawing import Scene
from instseg_d2.data.shapes.instances import make_shapes, make_split, write_images
from instseg_d2.engine import Trainer

SIDE = 96  # pixels of an image of large shapes
# Corners in -1..1 of a triangle, a rhombus and a cross. They fill half of their boxes.
OUTLINES = [
    [(-1, 1), (1, 1), (0, -1)],
    [(-1, 0), (0, -1), (1, 0), (0, 1)],
    [(x / 3, y / 3) for x, y in [(-1, -3), (1, -3), (1, -1), (3, -1), (3, 1), (1, 1)]]
    + [(x / 3, y / 3) for x, y in [(1, 3), (-1, 3), (-1, 1), (-3, 1), (-3, -1), (-1, -1)]],
]
# class, centre (x, y) and half a side in pixels of the objects of each image
LAYOUTS = [[(0, (26, 30), 22), (1, (68, 64), 24)], [(2, (68, 28), 23), (0, (28, 66), 24)]]


def draw_layout(layout, rng):
    """A Scene of light objects on a dark ground."""
    image = np.full((SIDE, SIDE, 3), (70, 60, 50), np.float32)
    owner = np.zeros((SIDE, SIDE), np.uint8)
    for number, (label, centre, size) in enumerate(layout, start=1):
        points = np.round(np.array(OUTLINES[label]) * size + centre).astype(np.int32)
        cv2.fillPoly(owner, [points], number)
        image[owner == number] = np.roll((220, 170, 110), number + label)
    image += rng.normal(0, 6, image.shape)
    return Scene(image.clip(0, 255).astype(np.uint8), owner, [label for label, _, _ in layout])


def make_large_shapes(folder):
    """Draw two images of SIDE pixels with two large objects each; returns the path of the JSON file."""
    layouts = iter(LAYOUTS)

    def write(drawing):
        return write_images(drawing, "train", len(LAYOUTS), seed=1, draw=lambda rng: draw_layout(next(layouts), rng))

    return make_split(folder, "train", {}, write)


def results_of(folder, json_file, config_file, iterations, rate, opts=(), seed=0):
    """
    Results, {task: {metric: value}}, of a config trained from scratch and evaluated on the same images.

    Args:
        folder: empty folder for the output; its name distinguishes the data sets of a process.
        opts: overrides after those of the test.
    """
    name = f"shapes_{folder.name}"
    register_coco(name, json_file, folder / "shapes" / "images")
    cfg = load_config(
        str(config_file),
        [
            "DATASETS.TRAIN", (name,),
            "DATASETS.TEST", (name,),
            "MODEL.DEVICE", "cpu",
            "OUTPUT_DIR", str(folder / "output"),
            "SOLVER.MAX_ITER", iterations,
            "SOLVER.WARMUP_ITERS", 20,
            "SOLVER.BASE_LR", rate,
            "INPUT.RANDOM_FLIP", "none",
            "DATALOADER.NUM_WORKERS", 0,
            *opts,
        ],
    )  # fmt: skip
    set_num_classes(cfg, len(class_names(name)))
    torch.manual_seed(seed)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer.results


def sizes(side):
    """Overrides for images whose shorter side has ``side`` pixels."""
    return [
        "INPUT.MIN_SIZE_TRAIN", (side,),
        "INPUT.MAX_SIZE_TRAIN", side * 3 // 2,
        "INPUT.MIN_SIZE_TEST", side,
        "INPUT.MAX_SIZE_TEST", side * 3 // 2,
    ]  # fmt: skip


def overfit(folder, config_file, side, iterations, rate, opts=()):
    """
    `results_of` for eight images of the shapes data set.

    Args:
        folder: empty folder for data and output.
        side: shorter side of the images in pixels; None: the config's sizes.
    """
    json_file = make_shapes(folder / "shapes", "train", 8, seed=1)
    results = results_of(folder, json_file, config_file, iterations, rate, [*(sizes(side) if side else []), *opts])
    assert len(DatasetCatalog.get(f"shapes_{folder.name}")) == 8
    return results


def overfit_large_shapes(folder, config_file, iterations, rate, opts=(), seed=0):
    """`results_of` for two small images, both in every batch, in single precision."""
    small = [
        *sizes(SIDE),
        "INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice",
        "SOLVER.IMS_PER_BATCH", len(LAYOUTS),
        "SOLVER.AMP.ENABLED", False,
    ]  # fmt: skip
    json_file = make_large_shapes(folder / "shapes")
    return results_of(folder, json_file, config_file, iterations, rate, [*small, *opts], seed)
