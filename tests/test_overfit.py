"""
The whole path learns: a quick recipe overfits eight images of shapes.

BlendMask is always tried; the other methods, which need five to ten minutes each, where INSTSEG_OVERFIT is set.
"""

import os

import pytest
import torch
from detectron2.data import DatasetCatalog

from instseg_d2.config import load_config, set_num_classes
from instseg_d2.data import class_names, register_coco
from instseg_d2.data.shapes import make_shapes
from instseg_d2.engine import Trainer

patient = pytest.mark.skipif("INSTSEG_OVERFIT" not in os.environ, reason="INSTSEG_OVERFIT is not set")
# quick recipe, iterations, learning rate, shorter side (None: the recipe's own sizes), result that reaches a goal
RECIPES = [
    pytest.param("blendmask_shapes", 450, 0.002, 256, "segm/AP", 80, id="blendmask"),
    pytest.param("sparseinst_shapes", 600, 0.001, 320, "segm/AP", 80, id="sparseinst", marks=patient),
    pytest.param("embedmask_shapes", 560, 0.001, 384, "segm/AP", 75, id="embedmask", marks=patient),
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "iterations", "rate", "side", "result", "goal"), RECIPES)
def test_overfitting_eight_images(tmp_path, request, recipe, iterations, rate, side, result, goal):
    json_file = make_shapes(tmp_path / "shapes", "train", 8, seed=1)
    name = f"eight_shapes_{recipe}"
    register_coco(name, json_file, tmp_path / "shapes" / "images")
    sizes = [
        "INPUT.MIN_SIZE_TRAIN", (side,),
        "INPUT.MAX_SIZE_TRAIN", side * 3 // 2,
        "INPUT.MIN_SIZE_TEST", side,
        "INPUT.MAX_SIZE_TEST", side * 3 // 2,
    ] if side else []  # fmt: skip
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
            "INPUT.RANDOM_FLIP", "none",
            "DATALOADER.NUM_WORKERS", 0,
            *sizes,
        ],
    )  # fmt: skip
    set_num_classes(cfg, len(class_names(name)))
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert len(DatasetCatalog.get(name)) == 8
    task, metric = result.split("/")
    assert trainer.results[task][metric] >= goal
