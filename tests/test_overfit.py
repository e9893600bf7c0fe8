"""The whole path learns: a small BlendMask overfits eight images of shapes."""

import pytest
import torch
from detectron2.data import DatasetCatalog

from instseg_d2.config import load_config, set_num_classes
from instseg_d2.data import class_names, register_coco
from instseg_d2.data.shapes import make_shapes
from instseg_d2.engine import Trainer

CONFIG = "configs/quick/blendmask_shapes.yaml"


@pytest.mark.slow
def test_overfitting_eight_images(tmp_path, request):
    json_file = make_shapes(tmp_path / "shapes", "train", 8, seed=1)
    register_coco("eight_shapes", json_file, tmp_path / "shapes" / "images")
    cfg = load_config(
        str(request.config.rootpath / CONFIG),
        [
            "DATASETS.TRAIN", ("eight_shapes",),
            "DATASETS.TEST", ("eight_shapes",),
            "MODEL.DEVICE", "cpu",
            "OUTPUT_DIR", str(tmp_path / "output"),
            "SOLVER.MAX_ITER", 450,
            "SOLVER.WARMUP_ITERS", 20,
            "SOLVER.BASE_LR", 0.002,
            "INPUT.MIN_SIZE_TRAIN", (256,),
            "INPUT.MAX_SIZE_TRAIN", 384,
            "INPUT.MIN_SIZE_TEST", 256,
            "INPUT.MAX_SIZE_TEST", 384,
            "INPUT.RANDOM_FLIP", "none",
            "DATALOADER.NUM_WORKERS", 0,
        ],
    )  # fmt: skip
    set_num_classes(cfg, len(class_names("eight_shapes")))
    torch.manual_seed(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert len(DatasetCatalog.get("eight_shapes")) == 8
    assert trainer.results["segm"]["AP"] >= 80
