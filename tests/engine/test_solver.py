"""Parameter groups and clipping against hand-written values."""

import pytest
import torch
from torch import nn

from instseg_d2.config import get_cfg
from instseg_d2.engine import Trainer
from instseg_d2.engine.muon import Muon
from instseg_d2.engine.solver import build_optimizer
from instseg_d2.errors import ConfigError
from tests.tiny import tiny_model


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Sequential(nn.Conv2d(4, 2, 1), nn.GroupNorm(1, 2))
        self.frozen = nn.Linear(2, 2)
        self.frozen.requires_grad_(False)


def by_name(model, optimizer):
    """Parameter name -> (learning rate, weight decay)."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }


def solver_cfg(**values):
    cfg = get_cfg()
    for key, value in values.items():
        cfg.SOLVER[key] = value
    return cfg


def test_groups_follow_every_key():
    model = Toy()
    cfg = solver_cfg(
        BASE_LR=0.5, WEIGHT_DECAY=0.25, WEIGHT_DECAY_NORM=0.0, BACKBONE_MULTIPLIER=0.5, BIAS_LR_FACTOR=2.0,
        WEIGHT_DECAY_BIAS=0.125,
    )  # fmt: skip
    assert by_name(model, build_optimizer(cfg, model)) == {
        "backbone.0.weight": (0.25, 0.25),
        "backbone.0.bias": (0.5, 0.125),
        "backbone.1.weight": (0.25, 0.0),
        "backbone.1.bias": (0.5, 0.125),
        "head.0.weight": (0.5, 0.25),
        "head.0.bias": (1.0, 0.125),
        "head.1.weight": (0.5, 0.0),
        "head.1.bias": (1.0, 0.125),
    }


def test_an_fpn_has_the_full_learning_rate():
    model = tiny_model("FCOSDetector")
    groups = by_name(
        model, build_optimizer(solver_cfg(BASE_LR=0.5, BACKBONE_MULTIPLIER=0.25, BIAS_LR_FACTOR=1.0), model)
    )
    slow = {name for name, (rate, _) in groups.items() if rate == 0.125}
    assert slow == {name for name in groups if name.startswith("backbone.bottom_up.")}
    assert {rate for name, (rate, _) in groups.items() if name not in slow} == {0.5}
    assert "backbone.fpn_lateral3.weight" in groups.keys() - slow


class Named(nn.Module):
    """Layers that SparseInst decays or not by their names, not their types."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.norm1 = nn.Conv2d(4, 4, 1)
        self.patch_embed = nn.Conv2d(3, 4, 2)
        self.downsample = nn.ModuleDict({"proj": nn.Linear(4, 4), "1": nn.Linear(4, 4)})
        self.cls_token = nn.Parameter(torch.zeros(4))


def test_sparseinst_decays_by_name():
    model = Named()
    cfg = solver_cfg(BASE_LR=0.5, WEIGHT_DECAY=0.25, WEIGHT_DECAY_NORM=0.0)
    cfg.MODEL.META_ARCHITECTURE = "SparseInst"
    groups = by_name(model, build_optimizer(cfg, model))
    assert len(groups) == len(list(model.parameters()))
    assert {values[0] for values in groups.values()} == {0.5}
    decayed = {name for name, values in groups.items() if values[1] == 0.25}
    assert decayed == {"bn.weight", "bn.bias", "downsample.1.weight", "downsample.1.bias"}
    assert {values[1] for name, values in groups.items() if name not in decayed} == {0.0}


def test_defaults_decay_all_but_norms():
    model = Toy()
    groups = by_name(model, build_optimizer(solver_cfg(BASE_LR=0.01, WEIGHT_DECAY=1e-4), model))
    decay = {name: values[1] for name, values in groups.items()}
    assert {values[0] for values in groups.values()} == {0.01}
    assert {name for name, value in decay.items() if value == 0} == {
        "backbone.1.weight", "backbone.1.bias", "head.1.weight", "head.1.bias",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "asked", "expected"),
    [
        ("BlendMask", "", torch.optim.SGD),
        ("GeneralizedRCNN", "", torch.optim.SGD),
        ("SparseInst", "", torch.optim.AdamW),
        ("ISTR", "", torch.optim.AdamW),
        ("SparseInst", "SGD", torch.optim.SGD),
        ("BlendMask", "ADAMW", torch.optim.AdamW),
    ],
)
def test_optimizer_of_the_method_unless_asked(method, asked, expected):
    cfg = solver_cfg(OPTIMIZER=asked, MOMENTUM=0.8, AMSGRAD=True)
    cfg.MODEL.META_ARCHITECTURE = method
    optimizer = build_optimizer(cfg, Toy())
    assert type(optimizer) is expected
    assert optimizer.defaults["momentum"] == 0.8 if expected is torch.optim.SGD else optimizer.defaults["amsgrad"]


def test_adamw_reads_its_betas():
    assert build_optimizer(solver_cfg(OPTIMIZER="ADAMW"), Toy()).defaults["betas"] == (0.9, 0.999)
    cfg = solver_cfg(OPTIMIZER="ADAMW", BASE_LR=0.5, WEIGHT_DECAY=0.0, BETAS=(0.5, 0.75))
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer(cfg, nn.ParameterList([parameter]))
    for gradient in (4.0, 1.0):
        parameter.grad = torch.tensor([gradient])
        optimizer.step()
    # By hand: means (2, 1.5) / (0.5, 0.75), squares (4, 3.25) / (0.25, 0.4375); steps 0.5 * (4 / 4, 2 / 7.428...^0.5).
    assert parameter.item() == pytest.approx(-0.5 * (1 + 2 / (3.25 / 0.4375) ** 0.5), rel=1e-5)


class Generator(nn.Linear):
    not_for_muon = ("weight",)


def test_muon_reads_its_keys_and_leaves_embeddings_and_named_weights_to_adamw():
    model = nn.ModuleDict({
        "embedding": nn.Embedding(20, 8), "linear": nn.Linear(8, 8), "norm": nn.LayerNorm(8),
        "generator": Generator(8, 16, bias=False),
    })  # fmt: skip
    cfg = solver_cfg(
        OPTIMIZER="muon", BASE_LR=0.5, MOMENTUM=0.75, NESTEROV=True, BETAS=(0.5, 0.75), WEIGHT_DECAY=0.25,
        WEIGHT_DECAY_NORM=0.125,
    )  # fmt: skip
    optimizer = build_optimizer(cfg, model)
    assert type(optimizer) is Muon
    values = {key: optimizer.defaults[key] for key in ("lr", "momentum", "nesterov", "betas", "num_steps")}
    assert values == {"lr": 0.5, "momentum": 0.75, "nesterov": True, "betas": (0.5, 0.75), "num_steps": 5}
    names = {p: name for name, p in model.named_parameters()}
    groups = {names[p]: (g["matrices"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert groups == {
        "embedding.weight": (False, 0.25), "linear.weight": (True, 0.25), "linear.bias": (True, 0.25),
        "norm.weight": (True, 0.125), "norm.bias": (True, 0.125), "generator.weight": (False, 0.25),
    }  # fmt: skip


@pytest.mark.parametrize(("name", "inside"), [("FCOSDetector", "backbone.bottom_up."), ("SparseInst", "backbone.")])
def test_adamw_for_a_backbone_but_not_for_its_fpn(name, inside):
    model = tiny_model(name)
    optimizer = build_optimizer(solver_cfg(OPTIMIZER="muon", MUON_BACKBONE=False), model)
    names = {p: name for name, p in model.named_parameters()}
    groups = {names[p]: g["matrices"] for g in optimizer.param_groups for p in g["params"]}
    assert {name for name in groups if not groups[name]} == {name for name in groups if name.startswith(inside)}


def step_with_gradient(cfg, gradients):
    """Change of two scalar parameters with these gradients in one SGD step of learning rate 1."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(1)) for _ in gradients])
    cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.WEIGHT_DECAY = 1.0, 0.0, 0.0
    optimizer = build_optimizer(cfg, model)
    for parameter, gradient in zip(model, gradients):
        parameter.grad = torch.tensor([gradient])
    optimizer.step()
    return [-p.item() for p in model]


@pytest.mark.parametrize(
    ("kind", "norm_type", "expected"),
    [
        ("value", 2.0, [1.0, 1.0]),  # each entry at most 1
        ("norm", 2.0, [1.0, 1.0]),  # each parameter's norm at most 1
        ("full_model", 2.0, [0.6, 0.8]),  # (3, 4) has norm 5
        ("full_model", 1.0, [3 / 7, 4 / 7]),
        ("full_model", float("inf"), [0.75, 1.0]),
    ],
)
def test_clipping(kind, norm_type, expected):
    cfg = solver_cfg()
    clip = cfg.SOLVER.CLIP_GRADIENTS
    clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE, clip.NORM_TYPE = True, kind, 1.0, norm_type
    assert step_with_gradient(cfg, [3.0, 4.0]) == pytest.approx(expected, rel=1e-5)


def test_no_clipping_by_default():
    assert step_with_gradient(solver_cfg(), [3.0, 4.0]) == [3.0, 4.0]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"Muon's momentum .* got 1.5"):
        build_optimizer(solver_cfg(OPTIMIZER="MUON", MOMENTUM=1.5), Toy())
    with pytest.raises(ConfigError, match=r"^SOLVER: .* no trainable parameter"):
        Trainer.build_optimizer(solver_cfg(), Toy().requires_grad_(False))
    with pytest.raises(ValueError, match="no trainable parameter"):
        build_optimizer(solver_cfg(), Toy().requires_grad_(False))
