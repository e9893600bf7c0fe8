"""The deformable and DLA recipes of BlendMask have the authors' values."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from instseg_d2.config import load_config
from instseg_d2.data import build_augmentations
from instseg_d2.data.augmentations import RandomCropAroundInstance
from instseg_d2.layers import DeformConv

CONFIGS = Path(__file__).parents[2] / "configs" / "BlendMask"


def recipe(name):
    return load_config(str(CONFIGS / f"{name}.yaml"), ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""])


# blocks of res3, res4, res5; shorter sides, longest side; iterations
DEFORMABLE = {
    "R_101_dcni3_5x": ((4, 23, 3), (640, 864), 1440, 400000),
    "550_R_50_dcni3_5x": ((4, 6, 3), (440, 594), 990, 270000),
}


@pytest.mark.parametrize("name", DEFORMABLE)
def test_every_third_block_is_deformable(name):
    blocks, sides, longest, iterations = DEFORMABLE[name]
    cfg = recipe(name)
    with torch.device("meta"):
        model = build_model(cfg)
    found = {
        tuple(key.split(".")[2:4])
        for key, module in model.named_modules()
        if isinstance(module, DeformConv) and module.modulated
    }
    assert found == {(f"res{i + 3}", str(j)) for i, count in enumerate(blocks) for j in range(0, count, 3)}
    assert (tuple(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING) == (sides, "range")
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.SOLVER.MAX_ITER) == (longest, iterations)
    crop, resize, flip = build_augmentations(cfg, True)
    assert isinstance(crop, RandomCropAroundInstance)
    assert (crop.crop_type, tuple(crop.crop_size)) == ("relative_range", (0.9, 0.9))
    assert (type(resize).__name__, type(flip).__name__) == ("ResizeShortestEdge", "RandomFlip")


def test_dla():
    cfg, base = recipe("DLA_34_syncbn_4x"), recipe("RT_R_50_4x_syncbn_shtw")
    for key in ("INPUT", "SOLVER", "DATASETS", "TEST"):
        assert cfg[key] == base[key]
    fcos = cfg.MODEL.FCOS
    assert (fcos.NUM_SHARE_CONVS, fcos.NUM_CLS_CONVS, fcos.NUM_BOX_CONVS, fcos.NORM) == (0, 4, 4, "GN")
    assert (cfg.MODEL.BASIS_MODULE.NUM_CONVS, cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.DLA.NORM) == (3, -1, "SyncBN")
    assert fcos.IN_FEATURES == ["p3", "p4", "p5"]
    with torch.device("meta"):
        model = build_model(cfg)
    assert all(parameter.requires_grad for parameter in model.parameters())
