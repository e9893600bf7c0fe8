"""EmbedMask's recipes, the versions implied by keys, and invalid values."""

from pathlib import Path

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model

from instseg_d2.config import get_cfg, load_config, set_num_classes
from instseg_d2.config.embedmask import embedmask_value, mask_stride
from instseg_d2.engine.solver import build_optimizer
from instseg_d2.errors import ConfigError
from instseg_d2.modeling.build import build
from instseg_d2.modeling.embedmask.versions import VERSIONS, fcos_arguments, version_of

FOLDER = Path(__file__).parents[2] / "configs/EmbedMask"
SCHEDULES = {1: ((60000, 80000), 90000, (800,)), 3: ((210000, 250000), 270000, (640, 800))}
# depth, schedule
RECIPES = {
    "v1_R_50_1x": (50, 1),
    "v1_R_101_1x": (101, 1),
    "v1_R_101_ms_3x": (101, 3),
    "v2_R_50_1x": (50, 1),
    "v2_R_101_1x": (101, 1),
    "v2_R_101_ms_3x": (101, 3),
    "v3_R_50_1x": (50, 1),
    "v3_R_101_ms_3x": (101, 3),
}
# embedding, margins, box padding, threshold, smooth loss
BY_VERSION = {"v1": (32, 1, 0.1, 0.5, 0.1), "v2": (8, 1, 0.1, 0.53, 0.0), "v3": (16, 16, -1.0, 0.53, 0.0)}


# Version 1's three keys, off.
WRITTEN_OUT = {"LOSS_SMOOTH_ALPHA": 0.0, "SAMPLE_POS_IOU_TH": 0.0, "BOX_TO_MARGIN_BLOCK": False}


def keys(**values):
    return [item for key, value in values.items() for item in (f"MODEL.EMBED_MASK.{key}", value)]


def test_all_recipes_are_listed():
    assert {p.stem for p in FOLDER.glob("v*.yaml")} == set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_the_published_recipes(name):
    cfg = load_config(str(FOLDER / f"{name}.yaml"), ["MODEL.DEVICE", "meta"])
    depth, schedule = RECIPES[name]
    dim, margins, padding, threshold, smooth = BY_VERSION[name[:2]]
    solver = cfg.SOLVER
    assert depth == cfg.MODEL.RESNETS.DEPTH
    assert f"MSRA/R-{depth}.pkl" in cfg.MODEL.WEIGHTS
    scales = tuple(cfg.INPUT.MIN_SIZE_TRAIN)
    assert (tuple(solver.STEPS), solver.MAX_ITER, scales) == SCHEDULES[schedule]
    assert (cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, cfg.INPUT.RANDOM_FLIP) == ("choice", "horizontal")
    assert (cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST) == (1333, 800, 1333)
    assert (solver.BASE_LR, solver.IMS_PER_BATCH, solver.WEIGHT_DECAY, solver.MOMENTUM) == (0.01, 16, 1e-4, 0.9)
    assert (solver.WARMUP_METHOD, solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == ("constant", 500, 1 / 3)
    assert not solver.CLIP_GRADIENTS.ENABLED
    assert (cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.RESNETS.STRIDE_IN_1X1, cfg.INPUT.FORMAT) == (2, True, "BGR")
    assert cfg.MODEL.PIXEL_MEAN == [102.9801, 115.9465, 122.7717]
    assert cfg.MODEL.PIXEL_STD == [1.0, 1.0, 1.0]

    with torch.device("meta"):
        model = build_model(cfg)
    assert model.proposal_generator.head.class_logits.out_channels == 80
    assert version_of(cfg) is VERSIONS[name[:2]]
    assert model.pixel_head.embedding.out_channels == model.proposal_head.embedding.out_channels == dim
    layer = model.proposal_head.box_margin or model.proposal_head.margin
    assert layer.weight.shape[0] == margins
    criterion = model.criterion
    assert (criterion.box_padding, criterion.smooth_weight, criterion.mask_weight) == (padding, smooth, 0.5)
    assert (model.mask_threshold, model.stride, model.inclusive) == (threshold, 4, False)
    for tower in (model.pixel_head.tower, model.proposal_generator.head.box_tower):
        assert len(tower.blocks) == 4
    limits = model.proposal_generator.limits_test
    assert (limits.score_threshold, limits.nms_threshold, limits.pre_nms_topk, limits.post_nms_topk) == (
        0.05, 0.6, 1000, 100,
    )  # fmt: skip
    assert (limits.sqrt_scores, limits.clip, limits.threshold_with_quality) == (False, True, False)


def test_biases_learn_twice_as_fast_and_do_not_decay():
    cfg = load_config(str(FOLDER / "v3_R_50_1x.yaml"), ["MODEL.DEVICE", "meta"])
    with torch.device("meta"):
        model = build_model(cfg)
    groups = {
        id(p): (g["lr"], g["weight_decay"]) for g in build_optimizer(cfg, model).param_groups for p in g["params"]
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert groups[id(parameter)] == ((0.02, 0.0) if name.endswith("bias") else (0.01, 1e-4)), name


@pytest.mark.parametrize(
    ("values", "version"),
    [
        ({}, "v3"),
        ({"EMBED_DIM": 8, "BOX_PADDING": 0.1}, "v2"),
        ({"LOSS_SMOOTH_ALPHA": 0.1}, "v1"),
        ({"SAMPLE_POS_IOU_TH": 0.5, "EMBED_DIM": 32}, "v1"),
        ({"BOX_TO_MARGIN_BLOCK": True}, "v1"),
        ({"EMBED_DIM": 8}, "v2"),
        ({"BOX_PADDING": 0.1}, "v2"),
        ({"EMBED_DIM": 16}, "v3"),
        ({"BOX_PADDING": -1}, "v3"),
        # All keys written out, as in the config of a run or the authors' file.
        ({**WRITTEN_OUT, "EMBED_DIM": 16, "BOX_PADDING": -1.0}, "v3"),
        ({**WRITTEN_OUT, "EMBED_DIM": 8, "BOX_PADDING": 0.1}, "v2"),
        ({"VERSION": "v2", "EMBED_DIM": 4}, "v2"),
        ({"VERSION": "v3", "LOSS_SMOOTH_ALPHA": 0.1}, "v3"),
    ],
)
def test_versions_by_keys(values, version):
    assert version_of(load_config("", keys(**values))) is VERSIONS[version]


VALUES = ("EMBED_DIM", "BOX_PADDING", "MASK_TH", "SAMPLE_POS_IOU_TH", "LOSS_SMOOTH_ALPHA", "BOX_TO_MARGIN_BLOCK")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("v1", (32, 0.1, 0.5, 0.5, 0.1, True)),
        ("v2", (8, 0.1, 0.53, 0.0, 0.0, False)),
        ("v3", (16, -1.0, 0.53, 0.0, 0.0, False)),
    ],
)
def test_the_version_alone_says_the_rest(version, expected):
    cfg = load_config(str(FOLDER / "Base-EmbedMask.yaml"), ["MODEL.DEVICE", "meta", *keys(VERSION=version)])
    found = tuple(embedmask_value(cfg, key) for key in VALUES)
    assert found == expected
    assert [type(value) for value in found] == [int, float, float, float, float, bool]
    recipe = load_config(str(FOLDER / f"{version}_R_50_1x.yaml"), ["MODEL.DEVICE", "meta"])
    assert tuple(embedmask_value(recipe, key) for key in VALUES) == expected
    with torch.device("meta"):
        model, written_out = build_model(cfg), build_model(recipe)
    shapes = [{name: tuple(x.shape) for name, x in m.state_dict().items()} for m in (model, written_out)]
    assert shapes[0] == shapes[1]
    assert vars(model.criterion) == vars(written_out.criterion)
    assert model.mask_threshold == written_out.mask_threshold == expected[2]
    # A given value stays, also one that equals another version's.
    cfg.merge_from_list(keys(EMBED_DIM=12, MASK_TH=0.6, LOSS_SMOOTH_ALPHA=0.3, BOX_PADDING=0.2))
    assert tuple(embedmask_value(cfg, key) for key in VALUES) == (12, 0.2, 0.6, expected[3], 0.3, expected[5])


def test_written_configs_keep_their_meaning(tmp_path):
    for version in VERSIONS:
        (tmp_path / "config.yaml").write_text(load_config("", keys(VERSION=version)).dump())
        cfg = load_config(str(tmp_path / "config.yaml"))
        assert version_of(cfg) is VERSIONS[version]
        assert embedmask_value(cfg, "EMBED_DIM") == BY_VERSION[version][0]


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"VERSION": "v4"}, r"VERSION is 'v4'; it must be v1, v2, v3 or empty"),
        ({"EMBED_DIM": 8}, r"EMBED_DIM 8 with BOX_PADDING -1.*VERSION"),
        ({"NUM_CLASSES": 1}, "NUM_CLASSES is 1; it must be at least 2, since it includes the background"),
        ({"NORM_REG_TARGETS": False}, "NORM_REG_TARGETS"),
        ({"CENTERNESS_ON_REG": False}, "CENTERNESS_ON_REG"),
        ({"IOU_LOSS_TYPE": "diou"}, "IOU_LOSS_TYPE"),
        ({"MASK_SCALE_FACTOR": 3}, "MASK_SCALE_FACTOR is 3"),
        ({"MASK_SCALE_FACTOR": 8}, "MASK_SCALE_FACTOR is 8"),
        ({"FPN_STRIDES": [4, 8, 16, 32, 64]}, "FPN_STRIDES names 4"),
        ({"MASK_SCALE_FACTOR": 0}, "MASK_SCALE_FACTOR is 0"),
        ({"FPN_INTEREST_SPLIT": [64]}, r"FPN_STRIDES must ascend .* got \[8, 16, 32, 64, 128\] and \[64\]"),
        ({"FPN_STRIDES": [128, 64, 32, 16, 8], "MASK_SCALE_FACTOR": 2}, "FPN_STRIDES must ascend"),
        ({"MASK_TH": 0.0}, "MASK_TH is 0.0"),
        ({"EMBED_DIM": 1, "VERSION": "v2"}, "EMBED_DIM is 1"),
        ({"NORM": "XN"}, "NORM is 'XN'; it must be GN, BN"),
        ({"EMBED_DIM": 16, "BOX_PADDING": 0.1}, r"EMBED_DIM 16 with BOX_PADDING 0.1.*VERSION"),
        ({"VERSION": "v1", "BOX_TO_MARGIN_BLOCK": False}, "BOX_TO_MARGIN_BLOCK is False; it is True in v1"),
        ({"VERSION": "v2", "BOX_TO_MARGIN_BLOCK": True}, "BOX_TO_MARGIN_BLOCK is True; it is True in v1"),
        ({"LOSS_SMOOTH_ALPHA": "much"}, "LOSS_SMOOTH_ALPHA is 'much'; it must be at least 0, or None"),
        ({"VERSION": "v1", "SAMPLE_POS_IOU_TH": True}, "SAMPLE_POS_IOU_TH is True; it must be from 0 to 1, or None"),
    ],
)
def test_values_that_cannot_be_used(values, match):
    cfg = load_config(str(FOLDER / "v3_R_50_1x.yaml"), ["MODEL.DEVICE", "meta"])
    cfg.merge_from_list(["MODEL.EMBED_MASK.VERSION", "", *keys(**values)])
    with torch.device("meta"), pytest.raises(ConfigError, match=match):
        build(cfg)


def test_the_class_count_counts_the_background():
    cfg = get_cfg()
    assert cfg.MODEL.EMBED_MASK.NUM_CLASSES == 81
    for count in (1, 7, 80):
        set_num_classes(cfg, count)
        assert count + 1 == cfg.MODEL.EMBED_MASK.NUM_CLASSES
    cfg = load_config(str(FOLDER / "v3_R_50_1x.yaml"), ["MODEL.DEVICE", "meta", *keys(NUM_CLASSES=4)])
    with torch.device("meta"):
        assert build_model(cfg).proposal_generator.head.class_logits.out_channels == 3


def test_keys_reach_the_detector():
    cfg = load_config(
        str(FOLDER / "v3_R_50_1x.yaml"),
        [
            "TEST.DETECTIONS_PER_IMAGE", 400,
            *keys(
                CENTER_ON=False, CENTER_POS_RADIOS=2.5, LOSS_ALPHA=0.3, LOSS_GAMMA=1.0, INFERENCE_TH=0.1,
                PRE_NMS_TOP_N=7, NMS_TH=0.4, INCLUSIVE_BOXES=True, PRIOR_PROB=0.02, HEAD_NUM_CONVS=2,
                FPN_STRIDES=[8, 16, 32, 64], FPN_INTEREST_SPLIT=[32, 64, 128], MASK_SCALE_FACTOR=4,
            ),
        ],
    )  # fmt: skip
    shapes = {f"p{k}": ShapeSpec(channels=64, stride=2**k) for k in range(3, 8)}
    arguments = fcos_arguments(cfg, shapes)
    assert arguments["in_features"] == ["p3", "p4", "p5", "p6"]
    assert arguments["size_bounds"] == [32, 64, 128]
    assert (arguments["center_sample"], arguments["radius"], arguments["inclusive"]) == (False, 2.5, True)
    assert (arguments["focal_alpha"], arguments["focal_gamma"]) == (0.3, 1.0)
    limits = arguments["limits_test"]
    assert (limits.score_threshold, limits.pre_nms_topk, limits.post_nms_topk) == (0.1, 7, 400)
    assert (limits.nms_threshold, limits.inclusive) == (0.4, True)
    assert len(arguments["head"].class_tower.blocks) == 2
    assert torch.allclose(arguments["head"].class_logits.bias.sigmoid(), torch.tensor(0.02))
    assert mask_stride(cfg) == 2
