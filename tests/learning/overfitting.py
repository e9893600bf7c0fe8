"""Training on eight images of shapes, and the results on the same."""

import torch
from detectron2.data import DatasetCatalog

from instseg_d2.config import load_config, set_num_classes
from instseg_d2.data import class_names, register_coco
from instseg_d2.data.shapes.instances import make_shapes
from instseg_d2.engine import Trainer


def overfit(folder, config_file, side, iterations, rate, opts=()):
    """
    Results, {task: {metric: value}}, of a config trained from scratch on the images that it is tested on.

    Args:
        folder: an empty one, for data and output; its name tells the data sets of a process apart.
        side: shorter side of the images, pixels; None: the config's own sizes.
        opts: overrides after those of the trial.
    """
    json_file = make_shapes(folder / "shapes", "train", 8, seed=1)
    name = f"eight_shapes_{folder.name}"
    register_coco(name, json_file, folder / "shapes" / "images")
    sizes = [
        "INPUT.MIN_SIZE_TRAIN", (side,),
        "INPUT.MAX_SIZE_TRAIN", side * 3 // 2,
        "INPUT.MIN_SIZE_TEST", side,
        "INPUT.MAX_SIZE_TEST", side * 3 // 2,
    ] if side else []  # fmt: skip
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
            *sizes,
            *opts,
        ],
    )  # fmt: skip
    set_num_classes(cfg, len(class_names(name)))
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert len(DatasetCatalog.get(name)) == 8
    return trainer.results
