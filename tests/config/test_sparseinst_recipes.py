"""SparseInst's recipes against the published table, and the authors' own files against them."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from instseg_d2.config import load_config
from instseg_d2.data import InstanceDatasetMapper
from instseg_d2.engine.solver import build_optimizer
from instseg_d2.zoo import recipes
from tests.config.written import changed_keys

CONFIGS = Path(__file__).parents[2] / "configs/SparseInst"

# name -> published AP on val2017, shorter side at test time, decoder, backbone, deformable, crop
PUBLISHED = {
    "r50_base": (32.8, 640, "BaseIAM", "ResNet", False, False),
    "r50_giam": (33.4, 608, "GroupIAM", "ResNet", False, False),
    "r50_giam_fp16": (None, 608, "GroupIAM", "ResNet", False, False),
    "r50_giam_soft": (33.6, 608, "GroupIAMSoft", "ResNet", False, False),
    "r50_giam_aug": (34.2, 608, "GroupIAM", "ResNet", False, True),
    "r50_dcn_giam_aug": (36.4, 608, "GroupIAM", "ResNet", True, True),
    "r50vd_giam_aug": (35.6, 608, "GroupIAM", "resnet50d", False, True),
    "r50vd_dcn_giam_aug": (37.4, 608, "GroupIAM", "resnet50d", True, True),
    "cspdarknet53_giam": (35.1, 640, "GroupIAMSoft", "cspdarknet53", False, False),
    "darknet53_giam": (None, 640, "GroupIAM", "darknet53", False, False),
    "r101_giam": (34.9, 640, "GroupIAM", "ResNet", False, False),
    "r101_dcn_giam": (36.4, 640, "GroupIAM", "ResNet", True, False),
    "pvt_b1_giam": (35.3, 640, "GroupIAM", "pvt_v2_b1", False, False),
    "pvt_b2_li_giam": (37.2, 640, "GroupIAM", "pvt_v2_b2_li", False, False),
}


def recipe(name, *opts):
    return load_config(str(CONFIGS / f"sparse_inst_{name}.yaml"), list(opts))


def test_the_table_is_complete():
    ours = {"r50_giam_fast"}
    assert {p.stem for p in CONFIGS.glob("sparse_inst_*.yaml")} == {f"sparse_inst_{x}" for x in ours | set(PUBLISHED)}


def test_the_fast_recipe_changes_only_the_training():
    """Norms are folded at inference."""
    assert changed_keys(recipe("r50_giam"), recipe("r50_giam_fast")) == {
        "MODEL.AUXILIARY.WEIGHT", "MODEL.SPARSE_INST.ENCODER.NORM", "MODEL.SPARSE_INST.DECODER.NORM",
        "MODEL.SPARSE_INST.DECODER.START", "MODEL.SPARSE_INST.MATCHER.SIGMA", "MODEL.SPARSE_INST.LOSS.MAP_WEIGHT",
        "MODEL.SPARSE_INST.LOSS.PILOTS", "SOLVER.STEPS", "SOLVER.MAX_ITER",
    }  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_recipes(name):
    ap, test_size, decoder, network, deformable, crop = PUBLISHED[name]
    cfg = recipe(name, "MODEL.DEVICE", "meta")
    assert recipes()[f"SparseInst/sparse_inst_{name}"].get("mask AP") == ap
    solver, given = cfg.SOLVER, cfg.INPUT
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.IMS_PER_BATCH) == (5e-5, 0.05, 64)
    assert (tuple(solver.STEPS), solver.MAX_ITER) == ((210000, 250000), 270000)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.CLIP_GRADIENTS.ENABLED) == (1000, 0.001, False)
    assert (solver.BACKBONE_MULTIPLIER, solver.AMP.ENABLED) == (1.0, "fp16" in name)
    assert (given.FORMAT, given.MASK_FORMAT) == ("RGB", "polygon" if crop else "bitmask")
    assert (tuple(given.MIN_SIZE_TRAIN), given.MAX_SIZE_TRAIN) == (tuple(range(416, 641, 32)), 853)
    assert (given.MIN_SIZE_TEST, given.MAX_SIZE_TEST) == (test_size, 853)
    assert given.CROP.ENABLED == crop
    if crop:
        assert (given.CROP.SCHEME, given.CROP.TYPE, tuple(given.CROP.SIZE)) == ("detr", "absolute_range", (384, 600))

    with torch.device("meta"):
        model = build_model(cfg)
    assert type(model.decoder).__name__ == f"{decoder}Decoder"
    offsets = [p.shape[0] for n, p in model.named_parameters() if "offset.weight" in n]
    blocks = 26 if "r101" in name else 9  # of res4 and res5
    assert offsets == ([18] * blocks if deformable else [])
    if network == "ResNet":
        assert type(model.backbone).__name__ == "ResNet"
        assert cfg.MODEL.RESNETS.DEPTH == (101 if "r101" in name else 50)
    else:
        assert model.backbone.net.pretrained_cfg["architecture"] == network
    shapes = model.backbone.output_shape()
    assert [shapes[f].stride for f in model.encoder.in_features] == [8, 16, 32]
    batch_norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert bool(batch_norms) == ("darknet" in name)
    assert all(p.requires_grad for p in model.parameters())


THEIR_BASE = """
MODEL:
  META_ARCHITECTURE: "SparseInst"
  PIXEL_MEAN: [123.675, 116.280, 103.530]
  PIXEL_STD: [58.395, 57.120, 57.375]
  WEIGHTS: "pretrained_models/R-50.pkl"
  BACKBONE:
    FREEZE_AT: 0
    NAME: "build_resnet_backbone"
  RESNETS:
    NORM: "FrozenBN"
    DEPTH: 50
    STRIDE_IN_1X1: False
    OUT_FEATURES: ["res3", "res4", "res5"]
  SPARSE_INST:
    CLS_THRESHOLD: 0.005
    MASK_THRESHOLD: 0.45
    MAX_DETECTIONS: 100
    ENCODER:
      NAME: "FPNPPMEncoder"
      NORM: ""
      IN_FEATURES: ["res3", "res4", "res5"]
      NUM_CHANNELS: 256
    DECODER:
      NAME: "BaseIAMDecoder"
      NUM_MASKS: 100
      NUM_CLASSES: 80
      KERNEL_DIM: 128
      SCALE_FACTOR: 2.0
      OUTPUT_IAM: False
      GROUPS: 4
      INST: {DIM: 256, CONVS: 4}
      MASK: {DIM: 256, CONVS: 4}
    LOSS:
      NAME: "SparseInstCriterion"
      ITEMS: ("labels", "masks")
      CLASS_WEIGHT: 2.0
      MASK_PIXEL_WEIGHT: 5.0
      MASK_DICE_WEIGHT: 2.0
      OBJECTNESS_WEIGHT: 1.0
    MATCHER: {NAME: "SparseInstMatcher", ALPHA: 0.8, BETA: 0.2}
    DATASET_MAPPER: "SparseInstDatasetMapper"
DATASETS:
  TRAIN: ("coco_2017_train",)
  TEST:  ("coco_2017_val",)
SOLVER:
  IMS_PER_BATCH: 64
  BASE_LR: 0.00005
  STEPS: (210000, 250000)
  MAX_ITER: 270000
  WEIGHT_DECAY: 0.05
INPUT:
  MIN_SIZE_TRAIN: (416, 448, 480, 512, 544, 576, 608, 640)
  MAX_SIZE_TRAIN: 853
  MIN_SIZE_TEST: 640
  MAX_SIZE_TEST: 853
  FORMAT: "RGB"
  MASK_FORMAT: "bitmask"
VERSION: 2
"""
GROUPED = "MODEL:\n  SPARSE_INST:\n    DECODER:\n      NAME: GroupIAMDecoder\n"
CROPPED = """INPUT:
  MASK_FORMAT: "polygon"
  MIN_SIZE_TEST: 608
  CROP:
    ENABLED: True
    TYPE: "absolute_range"
    SIZE: (384, 600)
"""
DEFORMABLE = "  RESNETS:\n    DEFORM_ON_PER_STAGE: [False, False, True, True]\n"
# our recipe -> what the authors' file adds to its base
THEIRS = {
    "r50_base": "",
    "r50_giam_aug": GROUPED + CROPPED,
    "r50_dcn_giam_aug": GROUPED + DEFORMABLE + CROPPED,
    "r50vd_dcn_giam_aug": GROUPED + '  BACKBONE:\n    NAME: "build_resnet_vd_backbone"\n' + DEFORMABLE + CROPPED,
    "cspdarknet53_giam": """MODEL:
  BACKBONE:
    NAME: "build_cspnet_backbone"
  CSPNET:
    NAME: "cspdarknet53"
    NORM: ""
    OUT_FEATURES: ["csp2", "csp3", "csp4"]
  SPARSE_INST:
    ENCODER:
      IN_FEATURES: ["csp2", "csp3", "csp4"]
    DECODER:
      NAME: "GroupIAMSoftDecoder"
""",
    "pvt_b2_li_giam": """MODEL:
  BACKBONE:
    NAME: "build_pyramid_vision_transformer"
  PVT:
    NAME: "b2"
    LINEAR: True
    OUT_FEATURES: ["p2", "p3", "p4"]
  SPARSE_INST:
    ENCODER:
      IN_FEATURES: ["p2", "p3", "p4"]
    DECODER:
      NAME: "GroupIAMDecoder"
""",
}


@pytest.mark.parametrize("name", THEIRS)
def test_the_authors_files_mean_the_same(tmp_path, name):
    """Their layout and spelling, with what they leave to their defaults: AdamW, masks, flip before resize and crop."""
    (tmp_path / "Base-SparseInst.yaml").write_text(THEIR_BASE)
    (tmp_path / "theirs.yaml").write_text('_BASE_: "Base-SparseInst.yaml"\n' + THEIRS[name])
    same = ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""]
    theirs, ours = load_config(str(tmp_path / "theirs.yaml"), same), recipe(name, *same)
    with torch.device("meta"):
        models = [build_model(cfg) for cfg in (theirs, ours)]
    shapes = [{n: p.shape for n, p in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1]
    assert str(models[0]) == str(models[1])
    for cfg in (theirs, ours):
        assert type(build_optimizer(cfg, torch.nn.Linear(2, 2))) is torch.optim.AdamW
    for is_train in (True, False):
        given = [InstanceDatasetMapper.from_config(cfg, is_train) for cfg in (theirs, ours)]
        assert given[0]["use_masks"] is True
        assert re.sub(r" at 0x\w+", "", str(given[0])) == re.sub(r" at 0x\w+", "", str(given[1]))

    # Only the names of these defaults are left.
    theirs.MODEL.MASK_ON, theirs.SOLVER.OPTIMIZER = True, "ADAMW"
    theirs.MODEL.SPARSE_INST.ENCODER.NAME = "InstanceContextEncoder"
    theirs.INPUT.CROP.SCHEME = ours.INPUT.CROP.SCHEME
    assert theirs == ours
