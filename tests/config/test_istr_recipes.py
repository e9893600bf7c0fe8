"""The published recipes of ISTR, the authors' own YAML layout, and Swin Transformers under it."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_backbone

from instseg_d2.checkpoint.authors import convert_state_dict
from instseg_d2.config import load_config
from instseg_d2.config.istr import istr_value, istr_version
from tests.config.written import changed_keys

ROOT = Path(__file__).parents[2]
RECIPES = sorted(p.stem for p in (ROOT / "configs/ISTR").glob("ISTR-*.yaml"))
# Written as the authors write theirs, version 1 and version 2.
AUTHORS_BASE = """
MODEL:
  META_ARCHITECTURE: "ISTR"
  MASK_ON: True
  WEIGHTS: "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  BACKBONE:
    NAME: "build_resnet_fpn_backbone"
  RESNETS:
    DEPTH: 50
    STRIDE_IN_1X1: False
    OUT_FEATURES: ["res2", "res3", "res4", "res5"]
  FPN:
    IN_FEATURES: ["res2", "res3", "res4", "res5"]
  ROI_HEADS:
    IN_FEATURES: ["p2", "p3", "p4", "p5"]
  ROI_BOX_HEAD:
    POOLER_TYPE: "ROIAlignV2"
    POOLER_RESOLUTION: 7
    POOLER_SAMPLING_RATIO: 2
  ISTR:
    NUM_CLASSES: 80
    NUM_PROPOSALS: 300
    NHEADS: 8
    DROPOUT: 0.0
    DIM_FEEDFORWARD: 2048
    ACTIVATION: "relu"
    HIDDEN_DIM: 256
    NUM_CLS: 3
    NUM_REG: 3
    NUM_MASK: 3
    NUM_HEADS: 6
    NUM_DYNAMIC: 2
    DIM_DYNAMIC: 64
    CLASS_WEIGHT: 2.0
    GIOU_WEIGHT: 2.0
    L1_WEIGHT: 5.0
    DEEP_SUPERVISION: True
    NO_OBJECT_WEIGHT: 0.1
    ALPHA: 0.25
    GAMMA: 2.0
    PRIOR_PROB: 0.01
    IOU_THRESHOLDS: [0.5]
    IOU_LABELS: [0, 1]
    PATH_COMPONENTS: "components/coco_2017_train.npz"
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.000025
  STEPS: (210000, 250000)
  MAX_ITER: 270000
  WARMUP_FACTOR: 0.01
  WARMUP_ITERS: 1000
  WEIGHT_DECAY: 0.0001
  OPTIMIZER: "ADAMW"
  BACKBONE_MULTIPLIER: 1.0
  CLIP_GRADIENTS:
    ENABLED: True
    CLIP_TYPE: "full_model"
    CLIP_VALUE: 1.0
    NORM_TYPE: 2.0
INPUT:
  FORMAT: "RGB"
  CROP:
    ENABLED: True
"""


def test_the_fast_recipe_changes_only_the_training():
    plain, fast = (load_config(str(ROOT / f"configs/ISTR/ISTR-R50-{name}.yaml")) for name in ("3x", "fast"))
    assert changed_keys(plain, fast) == {
        "MODEL.AUXILIARY.WEIGHT", "MODEL.AUXILIARY.NORM", "MODEL.ISTR.START", "MODEL.ISTR.PILOTS",
        "SOLVER.STEPS", "SOLVER.MAX_ITER",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"ISTR-R50-fast"}))
def test_the_published_recipes(name):
    cfg = load_config(str(ROOT / f"configs/ISTR/{name}.yaml"))
    solver, crop, method = cfg.SOLVER, cfg.INPUT.CROP, cfg.MODEL.ISTR.MASK_ENCODING_METHOD
    version = 2 if method else 1
    assert istr_version(cfg) == version
    assert method == next((m for m in ("PCA", "DCT", "AE") if f"-{m}-" in name), "")
    assert (istr_value(cfg, "MASK_SIZE"), istr_value(cfg, "MASK_WEIGHT")) == ((28, 2.0), (112, 5.0))[version - 1]
    assert (-1 if version == 2 else 2) == cfg.MODEL.BACKBONE.FREEZE_AT
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM) == (
        "ADAMW",
        2.5e-5,
        1e-4,
        1e-4,
    )
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.GAMMA) == (1000, 0.01, 0.1)
    clip = solver.CLIP_GRADIENTS
    assert (clip.ENABLED, clip.CLIP_TYPE, clip.CLIP_VALUE) == (True, "full_model", 1.0)
    assert cfg.INPUT.FORMAT == "RGB"
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.120, 57.375]
    assert not cfg.MODEL.RESNETS.STRIDE_IN_1X1
    assert ("LSJ" in name) == cfg.LSJ_AUG
    if "Cityscapes" in name:
        assert (cfg.MODEL.ISTR.NUM_CLASSES, crop.ENABLED) == (8, False)
        return
    assert (solver.STEPS, solver.MAX_ITER, solver.IMS_PER_BATCH) == ((210000, 250000), 270000, 16)
    scales = (480, 800) if version == 1 else (416, 1088)
    assert tuple(range(scales[0], scales[1] + 1, 32)) == cfg.INPUT.MIN_SIZE_TRAIN
    assert (crop.SCHEME, crop.TYPE, crop.SIZE) == (
        ("detr", "relative", [0.7, 0.7]) if version == 1 else ("detr", "absolute_range", [384, 600])
    )
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, cfg.INPUT.MAX_SIZE_TRAIN) == (800, 1333, 1333)
    if "Swin" not in name:
        assert f"R-{cfg.MODEL.RESNETS.DEPTH}.pkl" in cfg.MODEL.WEIGHTS


@pytest.mark.parametrize(
    ("ours", "lines"),
    [
        ("ISTR-R50-3x", "    MASK_DIM: 60\n    MASK_WEIGHT: 2.0\n"),
        (
            "ISTR-DCT-R50-3x",
            '    MASK_SIZE: 112\n    MASK_FEAT_DIM: 256\n    MASK_ENCODING_METHOD: "DCT"\n'
            "    MASK_WEIGHT: 5.0\n    FEAT_WEIGHT: 1.0\n",
        ),
    ],
)
def test_the_authors_files_mean_the_same(tmp_path, ours, lines):
    """A file in the authors' layout loads unchanged and builds the same network."""
    base = AUTHORS_BASE.replace("    MASK_ON: True\n", "")
    (tmp_path / "Base-ISTR.yaml").write_text(base)
    extra = f'_BASE_: "Base-ISTR.yaml"\nMODEL:\n  ISTR:\n{lines}'
    extra += "  BACKBONE:\n    FREEZE_AT: -1\n" if "DCT" in ours else ""
    (tmp_path / "ISTR-R50-3x.yaml").write_text(extra)
    theirs = load_config(str(tmp_path / "ISTR-R50-3x.yaml"))
    cfg = load_config(str(ROOT / f"configs/ISTR/{ours}.yaml"))
    assert istr_version(theirs) == istr_version(cfg)
    for key in ("MASK_SIZE", "MASK_WEIGHT"):
        assert istr_value(theirs, key) == istr_value(cfg, key)
    for config in (theirs, cfg):
        config.MODEL.ISTR.MASK_SIZE = config.MODEL.ISTR.MASK_WEIGHT = None
        config.MODEL.ISTR.PATH_COMPONENTS = ""
        config.MODEL.ROI_HEADS.NAME = "ISTRHeads"
    assert theirs.MODEL == cfg.MODEL


def swin_config(*opts):
    return load_config(
        "",
        [
            "MODEL.BACKBONE.NAME", "build_swint_fpn_backbone",
            "MODEL.BACKBONE.FREEZE_AT", 0,
            "MODEL.SWINT.EMBED_DIM", 12,
            "MODEL.SWINT.DEPTHS", [2, 2, 2, 2],
            "MODEL.SWINT.NUM_HEADS", [1, 2, 2, 3],
            "MODEL.SWINT.WINDOW_SIZE", 4,
            "MODEL.FPN.IN_FEATURES", ["stage2", "stage3", "stage4", "stage5"],
            "MODEL.FPN.OUT_CHANNELS", 8,
            *opts,
        ],
    )  # fmt: skip


def test_swin_under_an_fpn():
    torch.manual_seed(0)
    model = build_backbone(swin_config()).eval()
    assert {k: (v.channels, v.stride) for k, v in model.output_shape().items()} == {
        f"p{level}": (8, 2**level) for level in (2, 3, 4, 5, 6)
    }
    with torch.no_grad():
        maps = model(torch.randn(1, 3, 96, 160))
        levels = model.bottom_up(torch.randn(2, 3, 64, 96))
    assert [tuple(maps[f"p{level}"].shape[-2:]) for level in (2, 3, 4, 5)] == [(24, 40), (12, 20), (6, 10), (3, 5)]
    assert [tuple(x.shape) for x in levels.values()] == [
        (2, 12, 16, 24), (2, 24, 8, 12), (2, 48, 4, 6), (2, 96, 2, 3)
    ]  # fmt: skip
    # Each map comes out of a LayerNorm over its channels.
    for x in levels.values():
        torch.testing.assert_close(x.mean(1), torch.zeros_like(x[:, 0]), atol=1e-5, rtol=0)


def test_swin_freezes_its_first_stages():
    model = build_backbone(swin_config("MODEL.BACKBONE.FREEZE_AT", 2)).bottom_up
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed", "layers_0"}
    with pytest.raises(ValueError, match=r"SWINT\.OUT_FEATURES"):
        build_backbone(swin_config("MODEL.SWINT.OUT_FEATURES", ["res2"]))


def test_names_of_swin_checkpoints():
    """The authors' classifiers, and detectors whose bottom-up network has norms of its own, fill the whole network."""
    model = build_backbone(swin_config())
    wanted = {f"backbone.{key}" for key in model.state_dict() if key.startswith("bottom_up.")}
    blocks = [f"layers.{i}.blocks.{j}" for i in range(4) for j in range(2)]
    layers = {
        "norm1": ("weight", "bias"),
        "attn": ("relative_position_bias_table", "relative_position_index", "qkv.weight", "qkv.bias"),
        "attn.proj": ("weight", "bias"),
        "norm2": ("weight", "bias"),
        "mlp.fc1": ("weight", "bias"),
        "mlp.fc2": ("weight", "bias"),
    }
    names = [f"{block}.{layer}.{part}" for block in blocks for layer, parts in layers.items() for part in parts]
    names += [f"patch_embed.{part}" for part in ("proj.weight", "proj.bias", "norm.weight", "norm.bias")]
    names += [f"layers.{i}.downsample.{x}" for i in range(3) for x in ("reduction.weight", "norm.weight", "norm.bias")]
    classifier = dict.fromkeys([*names, "norm.weight", "norm.bias", "head.weight", "head.bias"])
    norms = {f"norm{i}.{part}" for i in range(4) for part in ("weight", "bias")}
    ours = {f"backbone.bottom_up.norms.stage{i}.{part}" for i in range(2, 6) for part in ("weight", "bias")}
    assert set(convert_state_dict(classifier)) == wanted - ours
    detector = {f"backbone.bottom_up.{name}": None for name in [*names, *norms]}
    assert set(convert_state_dict({**detector, "pos_embeddings.weight": None})) == wanted | {"query_embedding.weight"}
