"""`--auto --config-file`: every recipe of the package can be the base of another, with little memory as well."""

import pytest
import torch
from detectron2.modeling import build_model

from instseg_d2.commands import parse
from instseg_d2.config import load_config
from instseg_d2.engine.auto import Machine, make_plan
from instseg_d2.modeling.activation_checkpointing import checkpoint_activations
from tests.coco_sets import write_set
from tests.config.test_configs import RECIPES, ROOT, Unfilled
from tests.engine.test_auto_kinds import SIZE, hundreds

BUILT = ("quick", "FCOS", "MaskRCNN-heads")  # each method and each head, in small


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    boxes, per_image = hundreds()
    path, images = write_set(tmp_path_factory.mktemp("data"), boxes, size=SIZE, per_image=per_image)
    return ["--train-json", path, "--train-images", images]


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_every_recipe_can_be_the_base(tmp_path, data, monkeypatch, path):
    monkeypatch.setattr("instseg_d2.engine.auto.plan.this_machine", lambda *_: Machine(gpu=False, memory=0.2))
    file = str(tmp_path / "recipe.yaml")
    words = ["--output", file, "--config-file", str(path), *data, "MODEL.WEIGHTS", "", "MODEL.DEVICE", "meta"]
    make_plan(parse("recipe", words), file).write(file)  # checks all values
    if path.parent.name in BUILT:
        cfg = load_config(file)
        assert cfg.MODEL.ACTIVATION_CHECKPOINTING
        with torch.device("meta"), Unfilled():
            checkpoint_activations(build_model(cfg), cfg.MODEL.ACTIVATION_CHECKPOINTING)
