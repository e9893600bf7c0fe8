"""Invalid values of config keys: the error names key, value and what is allowed, in one sentence."""

import math
import os
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_defaults

from instseg_d2.config import check_config, get_cfg, get_value, load_config
from instseg_d2.config.backbones import BACKBONE_VALUES
from instseg_d2.config.blendmask import BLENDMASK_VALUES
from instseg_d2.config.common import COMMON_VALUES
from instseg_d2.config.detectron2_values import DETECTRON2_VALUES
from instseg_d2.config.embedmask import EMBEDMASK_VALUES
from instseg_d2.config.fcos import FCOS_VALUES
from instseg_d2.config.instancefcn import INSTANCEFCN_VALUES
from instseg_d2.config.istr import ISTR_VALUES
from instseg_d2.config.sparseinst import SPARSEINST_VALUES
from instseg_d2.config.values import items
from instseg_d2.engine import Trainer, argument_parser, setup
from instseg_d2.errors import ConfigError
from instseg_d2.inference.predictor import Predictor
from tests.config.written import written_config

CONFIGS = Path(__file__).parents[2] / "configs"
RULES = {
    **DETECTRON2_VALUES, **COMMON_VALUES, **BACKBONE_VALUES, **FCOS_VALUES, **BLENDMASK_VALUES,
    **EMBEDMASK_VALUES, **INSTANCEFCN_VALUES, **ISTR_VALUES, **SPARSEINST_VALUES,
}  # fmt: skip


# Text in either place, and the error about its value, raised when the config is complete.
REFUSED = [
    ("SOLVER.MAX_ITER", "0", r"^SOLVER\.MAX_ITER is 0; it must be at least 1\.$"),
    ("SOLVER.MAX_ITER", "-5", r"^SOLVER\.MAX_ITER is -5; it must be at least 1\.$"),
    ("SOLVER.BASE_LR", "0", r"^SOLVER\.BASE_LR is 0\.0; it must be above 0\.$"),
    ("SOLVER.BASE_LR", "-0.1", r"^SOLVER\.BASE_LR is -0\.1; it must be above 0\.$"),
    ("SOLVER.BASE_LR", "nan", r"^SOLVER\.BASE_LR is nan; it must be above 0\.$"),
    ("SOLVER.BASE_LR", "inf", r"^SOLVER\.BASE_LR is inf; it must be above 0\.$"),
    ("SOLVER.IMS_PER_BATCH", "0", r"^SOLVER\.IMS_PER_BATCH is 0; it must be at least 1\.$"),
    ("SOLVER.CHECKPOINT_PERIOD", "-10", r"^SOLVER\.CHECKPOINT_PERIOD is -10; .* 0 or -1 for never\.$"),
    ("SOLVER.OPTIMIZER", "LION", r"^SOLVER\.OPTIMIZER is 'LION'; it must be SGD, ADAMW, MUON or empty\.$"),
    ("SOLVER.MOMENTUM", "1.5", r"^SOLVER\.MOMENTUM is 1\.5; it must be from 0 to below 1\.$"),
    ("SOLVER.STEPS", "(100, 200.5)", r"^SOLVER\.STEPS is \(100, 200\.5\); .* a whole number of at least 1\.$"),
    ("SOLVER.STEPS", "('a',)", r"^SOLVER\.STEPS is \('a',\)"),
    ("SOLVER.LR_SCHEDULER_NAME", "cosine", r"LR_SCHEDULER_NAME is 'cosine'; it must be WarmupMultiStepLR or Wa"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "global", r"CLIP_TYPE is 'global'; it must be value, norm or full_model\.$"),
    ("SOLVER.BETAS", "(0.9, 1.0)", r"^SOLVER\.BETAS is \(0\.9, 1\.0\); it must be 2 values, each from 0 to below 1\.$"),
    ("SOLVER.ACCUMULATE", "0", r"^SOLVER\.ACCUMULATE is 0; it must be at least 1\.$"),
    ("SOLVER.PATIENCE", "-1", r"^SOLVER\.PATIENCE is -1; it must be at least 0\.$"),
    ("SOLVER.PATIENCE", "3", r"^SOLVER\.PATIENCE is 3; it needs evaluations: set TEST\.EVAL_PERIOD to"),
    ("SOLVER.EMA.DECAY", "1", r"^SOLVER\.EMA\.DECAY is 1\.0; it must be from 0 to below 1\.$"),
    ("DATALOADER.NUM_WORKERS", "-1", r"^DATALOADER\.NUM_WORKERS is -1; it must be at least 0\.$"),
    ("DATALOADER.SAMPLER_TRAIN", "random", r"SAMPLER_TRAIN is 'random'; it must be TrainingSampler or RepeatF"),
    ("OUTPUT_DIR", "", r"^OUTPUT_DIR is ''; it must be the name of a folder\.$"),
    ("OUTPUT_DIR", "None", r"^OUTPUT_DIR is ''; it must be the name of a folder\.$"),
    ("MODEL.DEVICE", "gpu", r"^MODEL\.DEVICE is 'gpu'; it must be cuda, cuda:N or cpu\.$"),
    ("MODEL.DEVICE", "0", r"^MODEL\.DEVICE is '0'; it must be cuda, cuda:N or cpu\.$"),
    ("MODEL.RESNETS.DEPTH", "51", r"^MODEL\.RESNETS\.DEPTH is 51; it must be 18, 34, 50, 101 or 152\.$"),
    ("MODEL.FPN.NORM", "gn", r"^MODEL\.FPN\.NORM is 'gn'; it must be GN, BN, SyncBN, FrozenBN, LN or empty\.$"),
    ("MODEL.FPN.FUSE_TYPE", "mean", r"^MODEL\.FPN\.FUSE_TYPE is 'mean'; it must be sum or avg\.$"),
    ("MODEL.ROI_HEADS.NUM_CLASSES", "0", r"^MODEL\.ROI_HEADS\.NUM_CLASSES is 0; it must be at least 1\.$"),
    ("MODEL.ROI_HEADS.NMS_THRESH_TEST", "50", r"NMS_THRESH_TEST is 50\.0; it must be from 0 to 1\.$"),
    ("MODEL.PIXEL_STD", "[0.0, 0.0, 0.0]", r"^MODEL\.PIXEL_STD is .*; it must be 3 values, each above 0\.$"),
    ("MODEL.PIXEL_MEAN", "[128.0]", r"^MODEL\.PIXEL_MEAN is \[128\.0\]; it must be 3 values"),
    ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", "[True]", r"DEFORM_ON_PER_STAGE is \[True\]; it must be 4 values"),
    ("INPUT.MIN_SIZE_TRAIN", "()", r"^INPUT\.MIN_SIZE_TRAIN is \(\); it must be one or more values"),
    ("INPUT.MIN_SIZE_TRAIN", "(-800,)", r"^INPUT\.MIN_SIZE_TRAIN is \(-800,\)"),
    ("INPUT.MAX_SIZE_TEST", "0", r"^INPUT\.MAX_SIZE_TEST is 0; it must be at least 1\.$"),
    ("INPUT.FORMAT", "L", r"^INPUT\.FORMAT is 'L'; it must be BGR or RGB\.$"),
    ("INPUT.FORMAT", "rgb", r"^INPUT\.FORMAT is 'rgb'; it must be BGR or RGB\.$"),
    ("INPUT.RANDOM_FLIP", "both", r"^INPUT\.RANDOM_FLIP is 'both'; it must be horizontal, vertical or none\.$"),
    ("INPUT.RANDOM_FLIP", "no", r"^INPUT\.RANDOM_FLIP is 'no'; it must be horizontal, vertical or none\.$"),
    ("INPUT.MASK_FORMAT", "rle", r"^INPUT\.MASK_FORMAT is 'rle'; it must be polygon or bitmask\.$"),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "range", r"SAMPLING range needs two values in .*; got \(800,\)\.$"),
    ("INPUT.MIN_SIZE_TRAIN_SAMPLING", "all", r"MIN_SIZE_TRAIN_SAMPLING is 'all'; it must be choice, range or batch\.$"),
    ("INPUT.CROP.TYPE", "half", r"^INPUT\.CROP\.TYPE is 'half'; it must be relative_range, relative, absolute or abs"),
    ("INPUT.CROP.SCHEME", "lsj", r"^INPUT\.CROP\.SCHEME is 'lsj'; it must be before_resize, detr or empty\.$"),
    ("INPUT.SCALE_JITTER", "(1.5, 0.5)", r"SCALE_JITTER is \(1\.5, 0\.5\); it must be two factors above 0, the l"),
    ("INPUT.SCALE_JITTER", "(0, 1)", r"SCALE_JITTER is \(0, 1\); it must be two factors above 0, the lower first\.$"),
    ("INPUT.COLOR_JITTER.HUE", "0.6", r"^INPUT\.COLOR_JITTER\.HUE is 0\.6; it must be from 0 to 0\.5\.$"),
    ("INPUT.MOSAIC.PROB", "2", r"^INPUT\.MOSAIC\.PROB is 2\.0; it must be from 0 to 1\.$"),
    ("INPUT.ROTATION.DEGREES", "270", r"^INPUT\.ROTATION\.DEGREES is 270\.0; it must be from 0 to 180\.$"),
    ("TEST.EVAL_PERIOD", "-2", r"^TEST\.EVAL_PERIOD is -2; it must be a number of iterations, or 0 or -1 for never\.$"),
    ("SEED", "99999999999", r"^SEED is 99999999999; it must be at most 2147483648, or negative"),
]  # fmt: skip


@pytest.mark.parametrize("place", ["command line", "YAML"])
@pytest.mark.parametrize(("key", "written", "message"), REFUSED)
def test_what_cannot_be_used(tmp_path, key, written, message, place):
    cfg = written_config(tmp_path, place, key, written)
    with pytest.raises(ConfigError, match=message):
        check_config(cfg)


# Values that are valid alone, but not together: a recipe, overrides and the error.
TOGETHER = [
    (
        "BlendMask/R_50_1x",
        ["MODEL.FCOS.SIZES_OF_INTEREST", [64]],
        r"IN_FEATURES and FPN_STRIDES must .* got 5, 5 and 1\.$",
    ),
    ("BlendMask/R_50_1x", ["MODEL.BLENDMASK.MERGING", "fcis", "MODEL.BASIS_MODULE.NUM_BASES", 5], "square .* got 5"),
    ("BlendMask/R_50_1x", ["MODEL.BASIS_MODULE.NAME", "DeepLabV3Plus"], r"takes two levels, .*; got p3, p4, p5\.$"),
    ("BlendMask/R_50_1x", ["MODEL.BLENDMASK.POOLER_SCALES", (0.25, 0.125)], "POOLER_SCALES is .* must be 1 values"),
    ("InstanceFCN/VGG16_k5", ["MODEL.INSTANCE_FCN.GRID", 22], "GRID is 22 and MASK_SIZE 21"),
    ("ISTR/ISTR-AE-R50-3x", ["MODEL.ISTR.MASK_SIZE", 28], "MASK_SIZE is 28; the AE embedding needs 112"),
    ("ISTR/ISTR-AE-R50-3x", ["MODEL.ISTR.MASK_COST", "dice"], "MASK_COST dice decodes the mask of every query"),
    ("ISTR/ISTR-AE-R50-3x", ["MODEL.ISTR.MASK_LOSS", "l2"], "MASK_LOSS l2 does not train the decoder"),
    ("ISTR/ISTR-AE-R50-3x", ["MODEL.ISTR.NHEADS", 7], r"HIDDEN_DIM is 256; .* multiple of MODEL\.ISTR\.NHEADS, 7"),
    ("ISTR/ISTR-AE-R50-3x", ["MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 0], "POOLER_SAMPLING_RATIO 1 or more; got"),
    ("ISTR/ISTR-AE-R50-3x", ["MODEL.ISTR.PATH_COMPONENTS", "a", "MODEL.ISTR.MASK_EMBEDDING_FILE", "b"], "different"),
    (
        "MaskRCNN-heads/blend_fcos_mask_rcnn_R_50_FPN_1x",
        ["MODEL.FCOS.YIELD_BOX_FEATURES", True],
        r"YIELD_BOX_FEATURES needs MODEL\.ROI_HEADS\.PROPOSAL_APPEND_GT False",
    ),
    (
        "",
        ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", 1],
        r"BASE_LR_END is 1\.0; .*, 0\.001\.$",
    ),
    ("", ["SOLVER.NESTEROV", True, "SOLVER.MOMENTUM", 0], r"NESTEROV True needs a SOLVER\.MOMENTUM above 0"),
    ("", ["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", (384, 600)], r"CROP\.SIZE is \(384, 600\); .* shares of the"),
    ("", ["INPUT.CROP.ENABLED", True, "INPUT.CROP.TYPE", "absolute"], r"CROP\.SIZE is \(0\.9, 0\.9\); .* pixels"),
    ("", ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [True] * 4], "bottleneck blocks.*; got 18"),
    (
        "",
        ["MODEL.BACKBONE.NAME", "build_resnet_vd_backbone", "MODEL.RESNETS.NORM", "GN"],
        r"NORM is 'GN'; with build_re",
    ),
    (
        "",
        ["MODEL.BACKBONE.NAME", "build_dilated_resnet_backbone", "MODEL.RESNETS.RES5_DILATION", 2],
        r"sets the dilation itself: leave MODEL\.RESNETS\.RES5_DILATION at 1",
    ),
]


@pytest.mark.parametrize(("recipe", "opts", "message"), TOGETHER)
def test_values_that_do_not_fit_together(recipe, opts, message):
    with pytest.raises(ConfigError, match=message):
        check_config(load_config(str(CONFIGS / f"{recipe}.yaml") if recipe else "", opts))


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_passes(path):
    check_config(load_config(path))


# Names in registries, which users may extend, and names that are only known to a built model.
OPEN = {
    "MODEL.TIMM.NAME", "MODEL.CSPNET.NAME", "MODEL.PVT.NAME", "MODEL.BASIS_MODULE.NAME",
    "MODEL.ISTR.MASK_ENCODING_METHOD", "MODEL.ISTR.EMBEDDING", "MODEL.SPARSE_INST.ENCODER.NAME",
    "MODEL.SPARSE_INST.DECODER.NAME", "MODEL.INSTANCE_FCN.IN_FEATURE", "MODEL.ASSEMBLE_MASK_HEAD.IN_FEATURE",
    "MODEL.ISTR.PATH_COMPONENTS", "MODEL.ISTR.MASK_EMBEDDING_FILE", "TEST.BEST_METRIC", "LOGGING.PROJECT",
    # Read by nothing: accepted for the authors' files.
    "MODEL.BASIS_MODULE.ANN_SET", "MODEL.ISTR.ACTIVATION", "MODEL.ISTR.NO_OBJECT_WEIGHT", "MODEL.ISTR.IOU_THRESHOLDS",
    "MODEL.ISTR.IOU_LABELS", "MODEL.SPARSE_INST.DATASET_MAPPER",
}  # fmt: skip


def test_every_key_of_ours_has_its_rule():
    theirs = {key for key, _ in items(detectron2_defaults())}
    for key, default in items(get_cfg()):
        if key not in theirs and not isinstance(default, (CfgNode, bool)):
            assert (key in RULES) != (key in OPEN), key
    assert RULES.keys() <= {key for key, _ in items(get_cfg())}


def put(cfg, key, value):
    section, _, name = key.rpartition(".")
    (get_value(cfg, section) if section else cfg)[name] = value


def is_list(key):
    return isinstance(get_value(get_cfg(), key), (list, tuple))


ANY_TEXT = {"OUTPUT_DIR", *(key for key, rule in RULES.items() if is_list(key) and rule.holds(["nonsense"]))}


@pytest.mark.parametrize("key", RULES)
def test_nonsense_is_refused_by_name(key):
    for nonsense in ("nonsense", -7, math.nan):
        if (key in ANY_TEXT and nonsense == "nonsense") or (key == "SEED" and nonsense == -7):
            continue
        cfg = get_cfg()
        put(cfg, key, [nonsense] if is_list(key) else nonsense)
        with pytest.raises(ConfigError, match=f"^{key} is .*; it must be "):
            check_config(cfg)


def test_types_of_values_set_in_python():
    for key, value, kind in (
        ("MODEL.MASK_ON", 1, "True or False"),
        ("SOLVER.MAX_ITER", 10.0, "a whole number"),
        ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.5", "a number"),
        ("MODEL.META_ARCHITECTURE", 3, "text"),
        ("MODEL.RPN.IN_FEATURES", "p3", "several values"),
    ):
        cfg = get_cfg()
        put(cfg, key, value)
        with pytest.raises(ConfigError, match=rf"^{key} is {value!r}; it must be {kind}\.$"):
            check_config(cfg)
    check_config(detectron2_defaults())  # without our keys


@pytest.mark.parametrize("way", ["setup", "Trainer", "Predictor"])
def test_every_way_to_a_model_checks_first(tmp_path, monkeypatch, way):
    monkeypatch.setattr("instseg_d2.modeling.build.build_model", lambda cfg: pytest.fail("built"))
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "out"), "INPUT.FORMAT", "L"]
    arguments, cfg = argument_parser().parse_args(opts), load_config("", opts)
    ways = {"setup": lambda: setup(arguments), "Trainer": lambda: Trainer(cfg), "Predictor": lambda: Predictor(cfg)}
    with pytest.raises(ConfigError, match=r"^INPUT\.FORMAT is 'L'; it must be BGR or RGB\.$"):
        ways[way]()
    assert not os.path.exists(tmp_path / "out")


def test_unknown_parts_name_their_key():
    for opts, message in (
        (["MODEL.META_ARCHITECTURE", "Sparseinst"], r"META_ARCHITECTURE is 'Sparseinst'; .*BlendMask, .*SparseInst"),
        (["MODEL.BACKBONE.NAME", "resnet"], r"BACKBONE\.NAME is 'resnet'; it must be one of .*build_resnet_backbone"),
        (["MODEL.ISTR.EMBEDDING", "Raw"], r"ISTR\.EMBEDDING is 'Raw'; it must be one of AE, DCT, PCA, RawMask\.$"),
    ):
        cfg = load_config(CONFIGS / "ISTR/ISTR-AE-R50-3x.yaml", ["MODEL.DEVICE", "meta", *opts])
        with torch.device("meta"), pytest.raises(ConfigError, match=rf"^MODEL\.{message}"):
            Trainer.build_model(cfg)
