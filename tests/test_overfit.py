"""
The whole path learns: a quick recipe overfits eight images of shapes.

BlendMask is always tried; the other methods, which need five to ten minutes each, where INSTSEG_OVERFIT is set.
"""

import os

import pytest

from tests.overfitting import overfit

patient = pytest.mark.skipif("INSTSEG_OVERFIT" not in os.environ, reason="INSTSEG_OVERFIT is not set")
# quick recipe, shorter side, iterations, learning rate, mask AP reached
RECIPES = [
    pytest.param("blendmask_shapes", 256, 450, 0.002, 80, id="blendmask"),
    pytest.param("sparseinst_shapes", 320, 600, 0.001, 80, id="sparseinst", marks=patient),
    pytest.param("embedmask_shapes", 384, 560, 0.001, 75, id="embedmask", marks=patient),
]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "side", "iterations", "rate", "goal"), RECIPES)
def test_overfitting_eight_images(tmp_path, request, recipe, side, iterations, rate, goal):
    config_file = request.config.rootpath / f"configs/quick/{recipe}.yaml"
    assert overfit(tmp_path, config_file, side, iterations, rate) >= goal
