"""
Each quick recipe overfits eight images of shapes: one to ten minutes each, if INSTSEG_OVERFIT is set. The short form is
test_learning.py.
"""

import os

import pytest

from tests.learning.overfitting import overfit

# What InstanceFCN was measured with.
ADAMW = ["SOLVER.OPTIMIZER", "ADAMW", "SOLVER.BETAS", (0.9, 0.999), "INPUT.MIN_SIZE_TRAIN_SAMPLING", "choice"]
# Masks have the weights of sparseinst_photos.
LOSS = "MODEL.SPARSE_INST.LOSS"
MASKS_FIRST = [
    "INPUT.COPY_PASTE", 0.0, f"{LOSS}.CLASS_WEIGHT", 4.0, f"{LOSS}.MASK_PIXEL_WEIGHT", 5.0,
    f"{LOSS}.MASK_DICE_WEIGHT", 2.0,
]  # fmt: skip
# quick recipe, shorter side, iterations, learning rate, overrides, result and what it reaches
RECIPES = [
    ("blendmask", 256, 220, 0.006, [], "segm/AP", 80),
    ("sparseinst", 320, 200, 0.006, MASKS_FIRST, "segm/AP", 75),
    ("embedmask", 384, 350, 0.006, [], "segm/AP", 75),
    ("istr", 256, 500, 0.004, ["SOLVER.FREEZE_NORMS_ITER", 300], "segm/AP", 75),
    ("instancefcn", None, 3400, 0.001, ADAMW, "proposals/AR@100", 75),
]


@pytest.mark.slow
@pytest.mark.skipif("INSTSEG_OVERFIT" not in os.environ, reason="INSTSEG_OVERFIT is not set")
@pytest.mark.parametrize(("method", "side", "iterations", "rate", "opts", "result", "goal"), RECIPES)
def test_overfitting_eight_images(tmp_path, request, method, side, iterations, rate, opts, result, goal):
    config_file = request.config.rootpath / f"configs/quick/{method}_shapes.yaml"
    task, metric = result.split("/")
    assert overfit(tmp_path, config_file, side, iterations, rate, opts)[task][metric] >= goal
