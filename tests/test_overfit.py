"""The whole path learns: a quick recipe overfits eight images of shapes."""

import pytest
import torch
from detectron2.data import DatasetCatalog

from instseg_d2.config import load_config, set_num_classes
from instseg_d2.data import class_names, register_coco
from instseg_d2.data.shapes import make_shapes
from instseg_d2.engine import Trainer

# quick recipe, iterations, learning rate, mask AP reached
RECIPES = [
    ("blendmask_shapes", 450, 0.002, 80),
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "iterations", "rate", "goal"), RECIPES, ids=[x[0] for x in RECIPES])
def test_overfitting_eight_images(tmp_path, request, recipe, iterations, rate, goal):
    json_file = make_shapes(tmp_path / "shapes", "train", 8, seed=1)
    name = f"eight_shapes_{recipe}"
    register_coco(name, json_file, tmp_path / "shapes" / "images")
    cfg = load_config(
        str(request.config.rootpath / f"configs/quick/{recipe}.yaml"),
        [
            "DATASETS.TRAIN", (name,),
            "DATASETS.TEST", (name,),
            "MODEL.DEVICE", "cpu",
            "OUTPUT_DIR", str(tmp_path / "output"),
            "SOLVER.MAX_ITER", iterations,
            "SOLVER.WARMUP_ITERS", 20,
            "SOLVER.BASE_LR", rate,
            "INPUT.MIN_SIZE_TRAIN", (256,),
            "INPUT.MAX_SIZE_TRAIN", 384,
            "INPUT.MIN_SIZE_TEST", 256,
            "INPUT.MAX_SIZE_TEST", 384,
            "INPUT.RANDOM_FLIP", "none",
            "DATALOADER.NUM_WORKERS", 0,
        ],
    )  # fmt: skip
    set_num_classes(cfg, len(class_names(name)))
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert len(DatasetCatalog.get(name)) == 8
    assert trainer.results["segm"]["AP"] >= goal
