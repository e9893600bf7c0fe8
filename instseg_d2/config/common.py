"""Keys that several methods share."""

import math

from detectron2.config import CfgNode

from .values import Rule, at_least, below_one, between, check_values, each, one_of, require, section


def _is_range(value) -> bool:
    return len(value) == 0 or (each(between(-math.inf, math.inf), count=2).holds(value) and value[0] < value[1])


_FILES = Rule("two paths, of annotations and of a folder of images, or ()", lambda value: len(value) in (0, 2))

COMMON_VALUES = {
    **section(
        "SOLVER",
        OPTIMIZER=Rule("SGD, ADAMW, MUON or empty", lambda name: str(name).upper() in ("SGD", "ADAMW", "MUON", "")),
        BACKBONE_MULTIPLIER=at_least(0),
        BETAS=each(below_one, count=2),
        FREEZE_NORMS_ITER=at_least(-1),
        FREEZE_BACKBONE_ITER=at_least(0),
        ACCUMULATE=at_least(1),
        PATIENCE=at_least(0),
    ),
    "SOLVER.EMA.DECAY": below_one,
    "INPUT.VALUE_RANGE": Rule("two numbers, the lower first, such as (0, 4095), or () to estimate them", _is_range),
    **section("DATASETS", TRAIN_FILES=_FILES, TEST_FILES=_FILES),
    **section("INPUT.CROP", SCHEME=one_of("before_resize", "detr", "")),
}


def add_common_config(cfg: CfgNode) -> None:
    """Add solver, input and test keys, in place."""
    # Optimiser: "SGD", "ADAMW" or "MUON"; empty: the method's default (see instseg_d2/methods.py).
    cfg.SOLVER.OPTIMIZER = ""
    # Factor on the learning rate of parameters with "backbone" in their name.
    cfg.SOLVER.BACKBONE_MULTIPLIER = 1.0
    cfg.SOLVER.AMSGRAD = False  # AMSGrad, only for AdamW
    cfg.SOLVER.BETAS = (0.9, 0.999)  # betas of AdamW and of Muon's AdamW
    cfg.SOLVER.FREEZE_BACKBONE_ITER = 0  # for this many iterations the backbone (not its FPN) stays as it was loaded
    cfg.SOLVER.FREEZE_NORMS_ITER = -1  # iteration from which batch norms use their running statistics; -1: never
    # Batches whose mean gradient makes one step, an iteration: like ACCUMULATE x IMS_PER_BATCH images, in the memory of
    # IMS_PER_BATCH. Batch norms and the losses' normalisers see each batch on its own.
    cfg.SOLVER.ACCUMULATE = 1
    # Training ends after so many evaluations (TEST.EVAL_PERIOD) in a row without a better TEST.BEST_METRIC; 0: never.
    cfg.SOLVER.PATIENCE = 0
    cfg.SOLVER.EMA = CfgNode()
    # Evaluate and save the exponential moving average of the weights instead of the last ones.
    cfg.SOLVER.EMA.ENABLED = False
    # Its decay; after t steps at most (1 + t) / (10 + t), so that a short training forgets its start.
    cfg.SOLVER.EMA.DECAY = 0.999

    # COCO annotations and the folder of their images, which become the data set custom_train; --train-json and
    # --train-images set it.
    cfg.DATASETS.TRAIN_FILES = ()
    # The same for custom_val; --val-json and --val-images set it.
    cfg.DATASETS.TEST_FILES = ()

    # Flip horizontally half of the time (AdelaiDet's switch; INPUT.RANDOM_FLIP must allow it, too).
    cfg.INPUT.HFLIP_TRAIN = True
    # Rotate by an angle in [-30, 30] degrees half of the time.
    cfg.INPUT.IS_ROTATE = False
    # With CROP: "before_resize" crops every image, then resizes it; "detr" resizes half of the images to 400, 500 or
    # 600 and crops them, then resizes all; empty: the method's default (see instseg_d2/methods.py).
    cfg.INPUT.CROP.SCHEME = ""
    # With CROP before_resize: the window contains the centre of a random instance.
    cfg.INPUT.CROP.CROP_INSTANCE = True

    # For images with more than 8 bits: the values (low, high) that are mapped to 0 and 255. Empty: estimated from a
    # sample of the training images (see instseg_d2/data/eight_bits.py) and stored in the checkpoint.
    cfg.INPUT.VALUE_RANGE = ()

    # Large-scale jitter: resize to 0.1 to 2 times 1024, then crop 1024 x 1024.
    cfg.LSJ_AUG = False

    # Metric that selects the best checkpoint, which is kept beside the last one.
    cfg.TEST.BEST_METRIC = "segm/AP"
    # Write inference/report.html as well: confused classes, and the worst images beside their annotations.
    cfg.TEST.REPORT = False


def check_common_config(cfg: CfgNode) -> None:
    """Raise ConfigError for invalid values."""
    check_values(cfg, COMMON_VALUES)
    patience = cfg.SOLVER.get("PATIENCE", 0)
    require(
        patience == 0 or cfg.TEST.EVAL_PERIOD > 0,
        f"SOLVER.PATIENCE is {patience}; it needs evaluations: set TEST.EVAL_PERIOD to their distance.",
    )
