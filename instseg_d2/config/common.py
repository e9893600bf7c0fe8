"""Keys that several methods share."""

import math

from detectron2.config import CfgNode

from ..methods import method_of
from .values import Rule, above, at_least, below_one, between, check_values, each, one_of, require, section


def _is_range(value) -> bool:
    return len(value) == 0 or (each(between(-math.inf, math.inf), count=2).holds(value) and value[0] < value[1])


_FILES = Rule("two paths, of annotations and of a folder of images, or ()", lambda value: len(value) in (0, 2))
_FACTORS = Rule(
    "two factors above 0, the lower first", lambda value: each(above(0), count=2).holds(value) and value[0] <= value[1]
)

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
    "MODEL.ACTIVATION_CHECKPOINTING": each(one_of("backbone", "heads"), min_length=0),
    "SOLVER.EMA.DECAY": below_one,
    **section("MODEL.AUXILIARY", WEIGHT=at_least(0), NUM_CONVS=at_least(0), NORM=one_of("", "BN", "SyncBN", "GN")),
    "INPUT.VALUE_RANGE": Rule("two numbers, the lower first, such as (0, 4095), or () to estimate them", _is_range),
    **section("DATASETS", TRAIN_FILES=_FILES, TEST_FILES=_FILES),
    "TEST.TILE.SIZE": Rule("0, or at least 32 pixels", lambda value: value == 0 or at_least(32).holds(value)),
    "TEST.TILE.OVERLAP": between(0, 0.75),
    "LOGGING.WRITERS": each(one_of("wandb", "mlflow"), min_length=0),
    **section("INPUT.CROP", SCHEME=one_of("before_resize", "detr", "")),
    **section("INPUT", SCALE_JITTER=_FACTORS, COPY_PASTE=between(0, 1), CLOSING_PHASE=between(0, 1)),
    **section(
        "INPUT.COLOR_JITTER",
        BRIGHTNESS=between(0, 1),
        CONTRAST=between(0, 1),
        SATURATION=between(0, 1),
        HUE=between(0, 0.5),
    ),
    **section("INPUT.MOSAIC", PROB=between(0, 1), SCALE=_FACTORS),
    **section("INPUT.ROTATION", DEGREES=between(0, 180)),
}


def add_common_config(cfg: CfgNode) -> None:
    """Add solver, input and test keys, in place."""
    # Parts that are run again in the backward pass, so that they need less memory: "backbone" (its stages), "heads"
    # (towers, basis modules, encoders, branches, refinement heads).
    cfg.MODEL.ACTIVATION_CHECKPOINTING = []

    # Optimiser: "SGD", "ADAMW" or "MUON"; empty: the method's default (see instseg_d2/methods.py).
    cfg.SOLVER.OPTIMIZER = ""
    # MUON also updates the backbone (not its FPN); False: AdamW does, which takes less time.
    cfg.SOLVER.MUON_BACKBONE = True
    # Factor on the learning rate of the backbone (not of its FPN): parameters with "backbone" in their name.
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

    # A dense head (FCOS) on the features of a query-based method, in training only; with little data it learns faster.
    cfg.MODEL.AUXILIARY = CfgNode()
    cfg.MODEL.AUXILIARY.WEIGHT = 0.0  # factor of its losses; 0: no such head
    cfg.MODEL.AUXILIARY.NUM_CONVS = 2  # convolutions of its class tower and of its box tower
    cfg.MODEL.AUXILIARY.NORM = "BN"  # their norm

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

    # Flip vertically half of the time, too: for images without an up.
    cfg.INPUT.VERTICAL_FLIP = False
    cfg.INPUT.ROTATION = CfgNode()
    # Turn by 0, 90, 180 or 270 degrees: for images without an up. Exact, unlike other angles.
    cfg.INPUT.ROTATION.QUARTER_TURNS = False
    # Rotate by an angle up to this many degrees, either way. The image keeps its size; its empty corners are black.
    cfg.INPUT.ROTATION.DEGREES = 0.0
    # Resize by a factor from this range as well, then crop to the size without it, around a random object.
    cfg.INPUT.SCALE_JITTER = (1.0, 1.0)
    # The colours of every image are changed by torchvision's ColorJitter with these strengths; 0: not changed.
    cfg.INPUT.COLOR_JITTER = CfgNode()
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = 0.0  # 0.4: by a factor from 0.6 to 1.4
    cfg.INPUT.COLOR_JITTER.CONTRAST = 0.0  # 0.4: by a factor from 0.6 to 1.4
    cfg.INPUT.COLOR_JITTER.SATURATION = 0.0  # 0.4: by a factor from 0.6 to 1.4
    cfg.INPUT.COLOR_JITTER.HUE = 0.0  # 0.1: turned by up to a tenth of the colour circle, either way
    # Share of the samples on which objects of another image are pasted. Needs masks, and makes all of them bitmasks.
    cfg.INPUT.COPY_PASTE = 0.0
    cfg.INPUT.MOSAIC = CfgNode()
    # Share of the samples that are made of pieces of four images. Makes all masks bitmasks.
    cfg.INPUT.MOSAIC.PROB = 0.0
    # Range of the factor by which the images of a mosaic are resized as well, instead of INPUT.SCALE_JITTER.
    cfg.INPUT.MOSAIC.SCALE = (0.5, 1.0)
    # Share of SOLVER.MAX_ITER at its end without INPUT.COPY_PASTE and INPUT.MOSAIC.
    cfg.INPUT.CLOSING_PHASE = 0.1

    # For images with more than 8 bits: the values (low, high) that are mapped to 0 and 255. Empty: estimated from a
    # sample of the training images (see instseg_d2/data/eight_bits.py) and stored in the checkpoint.
    cfg.INPUT.VALUE_RANGE = ()

    # Large-scale jitter: resize to 0.1 to 2 times 1024, then crop 1024 x 1024.
    cfg.LSJ_AUG = False

    cfg.LOGGING = CfgNode()
    # Services that get the metrics and pictures of a training, besides TensorBoard: "wandb", "mlflow" (their packages
    # must be installed).
    cfg.LOGGING.WRITERS = []
    cfg.LOGGING.PROJECT = "instseg_d2"  # project of Weights & Biases, experiment of MLflow

    # Metric that selects the best checkpoint, which is kept beside the last one.
    cfg.TEST.BEST_METRIC = "segm/AP"
    # Write inference/report.html as well: confused classes, and the worst images beside their annotations.
    cfg.TEST.REPORT = False
    cfg.TEST.TILE = CfgNode()
    # Cut test images into tiles of so many of their pixels a side, each of which the network sees as an image of its
    # own, and join objects over the seams, as `instseg predict --tile` does; 0: whole images.
    cfg.TEST.TILE.SIZE = 0
    cfg.TEST.TILE.OVERLAP = 0.2  # least part of a tile that it shares with the next one


def tested_in_tiles(cfg: CfgNode) -> tuple:
    """(TEST.TILE.SIZE, OVERLAP), or (): the model is tested on whole images; also for a config without these keys."""
    tile = cfg.TEST.get("TILE")
    return (tile.SIZE, tile.OVERLAP) if tile and tile.SIZE else ()


def check_common_config(cfg: CfgNode) -> None:
    """Raise ConfigError for invalid values."""
    check_values(cfg, COMMON_VALUES)
    _check_augmentations(cfg)
    auxiliary = cfg.MODEL.get("AUXILIARY", CfgNode({"WEIGHT": 0})).WEIGHT
    require(
        not auxiliary or method_of(cfg).auxiliary,
        f"MODEL.AUXILIARY.WEIGHT is {auxiliary}; {cfg.MODEL.META_ARCHITECTURE} has no auxiliary head: set it to 0.",
    )
    more = method_of(cfg).panoptic(cfg) or cfg.MODEL.KEYPOINT_ON
    require(
        not more or not tested_in_tiles(cfg),
        "TEST.TILE.SIZE must be 0: only instances with boxes and masks are joined over the seams of tiles.",
    )
    patience = cfg.SOLVER.get("PATIENCE", 0)
    require(
        patience == 0 or cfg.TEST.EVAL_PERIOD > 0,
        f"SOLVER.PATIENCE is {patience}; it needs evaluations: set TEST.EVAL_PERIOD to their distance.",
    )


def _check_augmentations(cfg: CfgNode) -> None:
    given = cfg.INPUT
    if "COPY_PASTE" not in given:  # a config without the keys of this package
        return
    scaled = {
        "INPUT.SCALE_JITTER": tuple(given.SCALE_JITTER) != (1, 1),
        "INPUT.MOSAIC.PROB": given.MOSAIC.PROB > 0,
    }
    for key, used in scaled.items():
        require(not (cfg.LSJ_AUG and used), f"LSJ_AUG True has its own scales and sizes: it cannot be used with {key}.")
    require(
        not (given.IS_ROTATE and given.ROTATION.DEGREES),
        "INPUT.IS_ROTATE True and INPUT.ROTATION.DEGREES both rotate the image: use one of them.",
    )
    require(
        given.COPY_PASTE == 0 or cfg.MODEL.MASK_ON or method_of(cfg).needs_masks,
        f"INPUT.COPY_PASTE is {given.COPY_PASTE}; it needs masks: set MODEL.MASK_ON True.",
    )
