"""Allowed values of Detectron2's own keys."""

import re

from detectron2.config import CfgNode

from .values import (
    Rule,
    above,
    at_least,
    below_one,
    between,
    check_values,
    detectron2_norm,
    each,
    one_of,
    or_none,
    require,
    section,
    whole,
    words,
)

__all__ = ["DETECTRON2_VALUES", "check_detectron2_config"]

_PERIOD = Rule("a number of iterations, or 0 or -1 for never", at_least(-1).holds)
_DEVICE = re.compile(r"(cuda|cpu|meta|mps|xpu)(:\d+)?")
_BOX_LOSS = one_of("smooth_l1", "giou", "diou", "ciou")
_POOLER = one_of("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated", "")

SOLVER_VALUES = {
    **section(
        "SOLVER",
        # Detectron2's third scheduler, WarmupStepWithFixedGammaLR, fails after the last iteration, before the model is
        # saved.
        LR_SCHEDULER_NAME=one_of("WarmupMultiStepLR", "WarmupCosineLR"),
        MAX_ITER=at_least(1),
        IMS_PER_BATCH=at_least(1),
        BASE_LR=above(0),
        BASE_LR_END=at_least(0),
        MOMENTUM=below_one,
        WEIGHT_DECAY=at_least(0),
        WEIGHT_DECAY_NORM=or_none(at_least(0)),
        WEIGHT_DECAY_BIAS=or_none(at_least(0)),
        BIAS_LR_FACTOR=at_least(0),
        GAMMA=above(0),
        STEPS=each(whole(1), min_length=0),
        WARMUP_METHOD=one_of("linear", "constant"),
        WARMUP_FACTOR=at_least(0),
        WARMUP_ITERS=at_least(0),
        CHECKPOINT_PERIOD=_PERIOD,
        REFERENCE_WORLD_SIZE=at_least(0),
    ),
    **section(
        "SOLVER.CLIP_GRADIENTS",
        CLIP_TYPE=one_of("value", "norm", "full_model"),
        CLIP_VALUE=above(0),
        NORM_TYPE=Rule("above 0", lambda value: value > 0),  # may be infinite
    ),
}

DATA_VALUES = {
    **section("DATASETS", TRAIN=words(), TEST=words()),
    **section(
        "DATALOADER",
        NUM_WORKERS=at_least(0),
        SAMPLER_TRAIN=one_of("TrainingSampler", "RepeatFactorTrainingSampler"),
        REPEAT_THRESHOLD=at_least(0),
    ),
    **section(
        "INPUT",
        FORMAT=one_of("BGR", "RGB"),
        MASK_FORMAT=one_of("polygon", "bitmask"),
        RANDOM_FLIP=one_of("horizontal", "vertical", "none"),
        MIN_SIZE_TRAIN=each(whole(0)),  # 0: not resized
        MIN_SIZE_TRAIN_SAMPLING=one_of("choice", "range", "batch"),
        MAX_SIZE_TRAIN=at_least(1),
        MIN_SIZE_TEST=at_least(0),
        MAX_SIZE_TEST=at_least(1),
    ),
    **section(
        "INPUT.CROP",
        TYPE=one_of("relative_range", "relative", "absolute", "absolute_range"),
        SIZE=each(above(0), count=2),
    ),
}

MODEL_VALUES = {
    **section(
        "MODEL",
        DEVICE=Rule("cuda, cuda:N or cpu", lambda name: bool(_DEVICE.fullmatch(str(name)))),
        PIXEL_MEAN=each(at_least(0), count=3),
        PIXEL_STD=each(above(0), count=3),
    ),
    **section("MODEL.BACKBONE", FREEZE_AT=at_least(-1)),
    **section(
        "MODEL.RESNETS",
        DEPTH=one_of(18, 34, 50, 101, 152),
        NORM=detectron2_norm,
        NUM_GROUPS=at_least(1),
        WIDTH_PER_GROUP=at_least(1),
        STEM_OUT_CHANNELS=at_least(1),
        RES2_OUT_CHANNELS=at_least(1),
        RES5_DILATION=one_of(1, 2),
        DEFORM_NUM_GROUPS=at_least(1),
        DEFORM_ON_PER_STAGE=each(one_of(True, False), count=4),
    ),
    **section(
        "MODEL.FPN", IN_FEATURES=words(), OUT_CHANNELS=at_least(1), FUSE_TYPE=one_of("sum", "avg"), NORM=detectron2_norm
    ),
    **section(
        "MODEL.RPN",
        BATCH_SIZE_PER_IMAGE=at_least(1),
        POSITIVE_FRACTION=between(0, 1),
        NMS_THRESH=between(0, 1),
        PRE_NMS_TOPK_TRAIN=at_least(1),
        PRE_NMS_TOPK_TEST=at_least(1),
        POST_NMS_TOPK_TRAIN=at_least(1),
        POST_NMS_TOPK_TEST=at_least(1),
        BBOX_REG_LOSS_TYPE=_BOX_LOSS,
        LOSS_WEIGHT=at_least(0),
    ),
    **section(
        "MODEL.ROI_HEADS",
        IN_FEATURES=words(),
        NUM_CLASSES=at_least(1),
        BATCH_SIZE_PER_IMAGE=at_least(1),
        POSITIVE_FRACTION=between(0, 1),
        SCORE_THRESH_TEST=between(0, 1),
        NMS_THRESH_TEST=between(0, 1),
    ),
    **section(
        "MODEL.ROI_BOX_HEAD",
        POOLER_TYPE=_POOLER,
        POOLER_RESOLUTION=at_least(1),
        POOLER_SAMPLING_RATIO=at_least(0),
        NUM_CONV=at_least(0),
        NUM_FC=at_least(0),
        CONV_DIM=at_least(1),
        FC_DIM=at_least(1),
        NORM=detectron2_norm,
        BBOX_REG_LOSS_TYPE=_BOX_LOSS,
    ),
    **section(
        "MODEL.ROI_MASK_HEAD",
        POOLER_TYPE=_POOLER,
        POOLER_RESOLUTION=at_least(1),
        POOLER_SAMPLING_RATIO=at_least(0),
        NUM_CONV=at_least(0),
        CONV_DIM=at_least(1),
        NORM=detectron2_norm,
    ),
    **section(
        "MODEL.RETINANET",
        NUM_CLASSES=at_least(1),
        NUM_CONVS=at_least(0),
        PRIOR_PROB=between(1e-6, 1 - 1e-6),
        SCORE_THRESH_TEST=between(0, 1),
        NMS_THRESH_TEST=between(0, 1),
        TOPK_CANDIDATES_TEST=at_least(1),
        BBOX_REG_LOSS_TYPE=_BOX_LOSS,
        NORM=detectron2_norm,
    ),
    **section(
        "MODEL.SEM_SEG_HEAD",
        NUM_CLASSES=at_least(1),
        CONVS_DIM=at_least(1),
        NORM=detectron2_norm,
        LOSS_WEIGHT=at_least(0),
    ),
    **section("MODEL.PANOPTIC_FPN", INSTANCE_LOSS_WEIGHT=at_least(0)),
    **section(
        "MODEL.PANOPTIC_FPN.COMBINE",
        OVERLAP_THRESH=between(0, 1),
        STUFF_AREA_LIMIT=at_least(0),
        INSTANCES_CONFIDENCE_THRESH=between(0, 1),
    ),
}

DETECTRON2_VALUES = {
    **SOLVER_VALUES,
    **DATA_VALUES,
    **MODEL_VALUES,
    **section("TEST", DETECTIONS_PER_IMAGE=at_least(-1), EVAL_PERIOD=_PERIOD),
    **section("TEST.PRECISE_BN", NUM_ITER=at_least(1)),
    "OUTPUT_DIR": Rule("the name of a folder", lambda value: isinstance(value, str) and value.strip() != ""),
    "VIS_PERIOD": _PERIOD,
    "SEED": Rule(f"at most {2**31}, or negative for a new seed in each run", lambda value: value <= 2**31),
}


def check_detectron2_config(cfg: CfgNode) -> None:
    """Raise ConfigError for invalid values of Detectron2's keys."""
    check_values(cfg, DETECTRON2_VALUES)
    sizes, crop, solver = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.CROP, cfg.SOLVER
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        require(
            len(sizes) == 2 and sizes[0] <= sizes[1],
            "INPUT.MIN_SIZE_TRAIN_SAMPLING range needs two values in INPUT.MIN_SIZE_TRAIN, the lower first; got "
            f"{tuple(sizes)}.",
        )
    if crop.ENABLED:
        relative = crop.TYPE in ("relative", "relative_range")
        require(
            all(size <= 1 if relative else isinstance(size, int) for size in crop.SIZE),
            f"INPUT.CROP.SIZE is {tuple(crop.SIZE)}; with INPUT.CROP.TYPE {crop.TYPE} it must be two "
            f"{'shares of the image, from 0 to 1' if relative else 'whole numbers of pixels'}.",
        )
    require(
        solver.LR_SCHEDULER_NAME != "WarmupCosineLR" or solver.BASE_LR_END <= solver.BASE_LR,
        f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}; with WarmupCosineLR it must be at most SOLVER.BASE_LR, "
        f"{solver.BASE_LR}.",
    )
    require(
        solver.MOMENTUM > 0 or not solver.NESTEROV or solver.get("OPTIMIZER", "").upper() == "ADAMW",
        "SOLVER.NESTEROV True needs a SOLVER.MOMENTUM above 0.",
    )
