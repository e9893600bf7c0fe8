"""Every YAML file builds a model, every key is read, and errors on unknown keys suggest the nearest one."""

import re
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from torch.overrides import TorchFunctionMode

from instseg_d2.config import class_count_keys, get_cfg, get_value, load_config, set_num_classes
from instseg_d2.engine import Predictor
from instseg_d2.errors import ConfigError

ROOT = Path(__file__).parents[2]
RECIPES = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if not p.name.startswith("Base"))

# AdelaiDet's key: accepted, without effect here (the comments in instseg_d2/config say why).
ACCEPTED_ONLY = {
    "USE_RELU",
    "ANN_SET",
    "VISUALIZE",
    "DATASET_MAPPER",
    "OUTPUT_IAM",
    "ACTIVATION",
    "NO_OBJECT_WEIGHT",
    "IOU_THRESHOLDS",
    "IOU_LABELS",
    # Keys with only one allowed value.
    "ANTI_ALIAS",
    "APE",
    "CENTERNESS_ON_REG",
    "CONV_BODY",
    "MOBILENET",
    "NORM_REG_TARGETS",
    "NUM_DYNAMIC",
}


class Unfilled(TorchFunctionMode):
    """
    Leaves out in-place functions that give weights their values: on the meta device for nothing, and slowly. Those of a
    network that runs, as timm's do once to find their maps, have a gradient function.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if re.search("[^_]_$", function.__name__):
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.grad_fn is None and function.__name__ != "requires_grad_":
                return tensor
        return function(*args, **kwargs)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_every_recipe_builds(path):
    cfg = load_config(str(path), ["MODEL.DEVICE", "meta"])
    with torch.device("meta"), Unfilled():
        model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    assert sum(p.numel() for p in model.parameters()) > 1e5
    assert len(cfg.DATASETS.TRAIN) == 1
    assert max(cfg.SOLVER.STEPS, default=0) < cfg.SOLVER.MAX_ITER


SCALES_800, SCALES_550 = (640, 672, 704, 736, 768, 800), (440, 462, 484, 506, 528, 550)
SCALES_RT = tuple(range(256, 609, 32))
SCHEDULES = {
    1: ((60000, 80000), 90000),
    3: ((210000, 250000), 270000),
    4: ((300000, 340000), 360000),
    5: ((280000, 360000), 400000),
}
# depth, schedule, training scales, their longest side, test shorter and longest side, levels, convs: shared, own, basis
PUBLISHED = {
    "R_50_1x": (50, 1, SCALES_800, 1333, 800, 1333, 5, 0, 4, 3),
    "R_50_3x": (50, 3, SCALES_800, 1333, 800, 1333, 5, 0, 4, 3),
    "R_101_3x": (101, 3, SCALES_800, 1333, 800, 1333, 5, 0, 4, 3),
    "R_101_dcni3_5x": (101, 5, (640, 864), 1440, 800, 1333, 5, 0, 4, 3),
    "550_R_50_1x": (50, 1, SCALES_550, 916, 550, 916, 4, 3, 0, 2),
    "550_R_50_3x": (50, 3, SCALES_550, 916, 550, 916, 4, 3, 0, 2),
    "RT_R_50_4x_syncbn_shtw": (50, 4, SCALES_RT, 900, 512, 736, 3, 3, 0, 2),
    "RT_R_50_4x_bn-head_syncbn_shtw": (50, 4, SCALES_RT, 900, 512, 736, 3, 3, 0, 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_recipes(name):
    cfg = load_config(str(ROOT / f"configs/BlendMask/{name}.yaml"))
    depth, schedule, scales, longest, test, test_longest, levels, shared, own, basis = PUBLISHED[name]
    fcos, bases, solver, real_time = cfg.MODEL.FCOS, cfg.MODEL.BASIS_MODULE, cfg.SOLVER, name.startswith("RT")
    assert depth == cfg.MODEL.RESNETS.DEPTH
    assert f"MSRA/R-{depth}.pkl" in cfg.MODEL.WEIGHTS
    assert (tuple(solver.STEPS), solver.MAX_ITER) == SCHEDULES[schedule]
    assert (solver.BASE_LR, solver.IMS_PER_BATCH, solver.OPTIMIZER, solver.MOMENTUM) == (0.01, 16, "", 0.9)
    assert (solver.WEIGHT_DECAY, solver.WEIGHT_DECAY_NORM, solver.GAMMA) == (1e-4, 0.0, 0.1)
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.CLIP_GRADIENTS.ENABLED) == (1000, 0.001, False)
    assert (tuple(cfg.INPUT.MIN_SIZE_TRAIN), cfg.INPUT.MAX_SIZE_TRAIN) == (scales, longest)
    assert (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (test, test_longest)
    assert ("range" if "dcni3" in name else "choice") == cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    assert ("dcni3" in name) == cfg.INPUT.CROP.ENABLED
    assert [f"p{level}" for level in range(3, 3 + levels)] == fcos.IN_FEATURES
    assert [2**level for level in range(3, 3 + levels)] == fcos.FPN_STRIDES
    assert [64, 128, 256, 512][: levels - 1] == fcos.SIZES_OF_INTEREST
    assert levels - 3 == fcos.TOP_LEVELS
    assert (fcos.NUM_SHARE_CONVS, fcos.NUM_CLS_CONVS, fcos.NUM_BOX_CONVS) == (shared, own, own)
    assert (fcos.THRESH_WITH_CTR, fcos.USE_SCALE) == (True, False)
    assert ("SyncBN" if "bn-head" in name else "GN") == fcos.NORM
    assert (bases.LOSS_ON, bases.NUM_CONVS, bases.NORM, bases.NUM_BASES) == (True, basis, "SyncBN", 4)
    assert (-1 if real_time else 2) == cfg.MODEL.BACKBONE.FREEZE_AT
    assert ("SyncBN" if real_time else "FrozenBN") == cfg.MODEL.RESNETS.NORM
    assert ("dcni3" in name) == any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE)


def test_adelaidet_files_mean_the_same(tmp_path):
    """A file in AdelaiDet's own layout and spelling merges unchanged and builds the released model."""
    (tmp_path / "Base.yaml").write_text(
        'MODEL:\n  META_ARCHITECTURE: "BlendMask"\n  MASK_ON: True\n  BACKBONE:\n'
        '    NAME: "build_fcos_resnet_fpn_backbone"\n  RESNETS:\n    OUT_FEATURES: ["res3", "res4", "res5"]\n'
        '  FPN:\n    IN_FEATURES: ["res3", "res4", "res5"]\n  PROPOSAL_GENERATOR:\n    NAME: "FCOS"\n'
        "  BASIS_MODULE:\n    LOSS_ON: True\n    ANN_SET: coco\n  PANOPTIC_FPN:\n    COMBINE:\n      ENABLED: False\n"
        "  FCOS:\n    THRESH_WITH_CTR: True\n    USE_SCALE: False\n    USE_RELU: True\n  BLENDMASK:\n"
        "    VISUALIZE: False\nSOLVER:\n  STEPS: (60000, 80000)\n  MAX_ITER: 90000\nVERSION: 2\n"
    )
    (tmp_path / "R_50_1x.yaml").write_text('_BASE_: "Base.yaml"\nMODEL:\n  RESNETS:\n    DEPTH: 50\n')
    theirs = load_config(str(tmp_path / "R_50_1x.yaml"), ["MODEL.WEIGHTS", ""])
    ours = load_config(str(ROOT / "configs/BlendMask/R_50_1x.yaml"), ["MODEL.WEIGHTS", ""])
    assert theirs.MODEL == ours.MODEL


def test_one_stage_detector_is_another_name_of_fcos():
    opts = ["MODEL.META_ARCHITECTURE", "OneStageDetector", "MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""]
    cfg = load_config(str(ROOT / "configs/FCOS/R_50_1x.yaml"), opts)
    with torch.device("meta"):
        assert type(build_model(cfg)).__mro__[1].__name__ == "FCOSDetector"


def test_class_counts_are_set_everywhere():
    cfg = get_cfg()
    set_num_classes(cfg, 7)
    assert {key: get_value(cfg, key) for key in class_count_keys(cfg)} == {
        "MODEL.ROI_HEADS.NUM_CLASSES": 7,
        "MODEL.RETINANET.NUM_CLASSES": 7,
        "MODEL.FCOS.NUM_CLASSES": 7,
        "MODEL.BASIS_MODULE.NUM_CLASSES": 7,
        "MODEL.EMBED_MASK.NUM_CLASSES": 8,
        "MODEL.ISTR.NUM_CLASSES": 7,
        "MODEL.SPARSE_INST.DECODER.NUM_CLASSES": 7,
    }


def test_own_keys_are_all_read():
    """Each key that instseg_d2/config defines occurs in code outside it."""
    defined = set()
    for path in (ROOT / "instseg_d2/config").glob("*.py"):
        defined |= set(re.findall(r"^    (?:node|cfg(?:\.\w+)+)\.([A-Z][A-Z0-9_]+) = ", path.read_text(), re.M))
    assert "POS_RADIUS" in defined
    code = "".join(p.read_text() for p in (ROOT / "instseg_d2").rglob("*.py") if "config" not in p.parent.name)
    checks = [p.read_text().partition("\ndef check_")[2] for p in (ROOT / "instseg_d2/config").glob("*.py")]
    code += "".join(checks)  # of values that must agree
    families = {"INFERENCE_TH", "PRE_NMS_TOPK", "POST_NMS_TOPK"}
    nodes = {
        "FCOS",
        "BLENDMASK",
        "BASIS_MODULE",
        "SPARSE_INST",
        "ENCODER",
        "DECODER",
        "LOSS",
        "MATCHER",
        "INST",
        "MASK",
    }
    for key in sorted(defined - ACCEPTED_ONLY - nodes):
        base = re.sub("_(TRAIN|TEST)$", "", key)
        assert re.search(rf"\b{key}\b", code) or (base in families and f"{base}_{{mode}}" in code), key


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("MODEL:\n  FCOS:\n    NUM_CLASES: 3\n", r"NUM_CLASES.*Did you mean MODEL\.FCOS\.NUM_CLASSES"),
        ("MODEL:\n  FCOS:\n    POS_RADIUS: abc\n", "POS_RADIUS"),
        ("MODEL: [1, 2\n", "bad.yaml"),
    ],
)
def test_bad_files(tmp_path, text, match):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=match) as error:
        load_config(str(path))
    assert "bad.yaml" in str(error.value)


@pytest.mark.parametrize("place", ["the file", "_BASE_", "VERSION 1", "checkpoint"])
def test_yaml_runs_no_code(tmp_path, place):
    """Every way from text to a config; the payload would create a folder."""
    trace, path = tmp_path / "trace", tmp_path / "config.yaml"
    payload = f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{trace}']\n"
    if place == "checkpoint":
        weights = tmp_path / "w.pth"
        torch.save({"model": {"a": torch.zeros(1)}, "cfg": payload}, weights)
        with pytest.raises(ConfigError, match=r"w\.pth: its config does not fit this version"):
            Predictor.from_checkpoint(str(weights))
    else:
        (tmp_path / "base.yaml").write_text(payload)
        text = {"the file": payload, "_BASE_": "_BASE_: base.yaml\n", "VERSION 1": f"VERSION: 1\n{payload}"}[place]
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"base\.yaml" if place == "_BASE_" else r"config\.yaml"):
            load_config(str(path))
    assert not trace.exists()


def test_bad_overrides_and_missing_file():
    with pytest.raises(ConfigError, match=r"SOLVER\.MAX_ITER"):
        load_config("", ["SOLVER.MAX_ITR", 3])
    with pytest.raises(ConfigError, match="pairs"):
        load_config("", ["SOLVER.MAX_ITER"])
    with pytest.raises(ConfigError, match="no such config file"):
        load_config("nowhere.yaml")
