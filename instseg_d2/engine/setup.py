"""From command-line arguments to a frozen config that fits the data and the machine."""

import argparse
import itertools
import logging
import os
from typing import Optional

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from .. import doctor
from ..arguments import add_training
from ..checkpoint import check_named, read_checkpoint_info, split_query
from ..config import check_config, get_value, load_config, set_num_classes
from ..data import check_images, check_same_classes, class_names, common_range, register_coco
from ..data.coco import require_registered
from ..data.value_range import trained_range
from ..errors import CheckpointError, ConfigError, DatasetError
from ..evaluation import leaves_out
from ..files import write_bytes
from ..inference.cpu import tune_cpu
from ..methods import method_of
from .log import setup_logging
from .trackers import require_trackers

__all__ = ["argument_parser", "kept_schedule", "register_files", "register_own_data", "setup"]

logger = logging.getLogger(__name__)


def argument_parser(description: str = "") -> argparse.ArgumentParser:
    """Detectron2's arguments, and those for CPU processes and for your own data."""
    parser = argparse.ArgumentParser(description=description)
    add_training(parser)
    return parser


_OWN = {"train": ("TRAIN", "TRAIN_FILES"), "val": ("TEST", "TEST_FILES")}  # keys of the sets custom_train, custom_val


def register_files(cfg: CfgNode) -> None:
    """Register custom_train and custom_val from DATASETS.TRAIN_FILES and TEST_FILES, if the config uses them."""
    for split, (key, files) in _OWN.items():
        if f"custom_{split}" in cfg.DATASETS[key] and cfg.DATASETS[files]:
            register_coco(f"custom_{split}", *cfg.DATASETS[files])


def register_own_data(cfg: CfgNode, args) -> None:
    """Put the four data arguments, if given, into the config, and register its own data sets."""
    for split, (key, files) in _OWN.items():
        json_file, images = getattr(args, f"{split}_json"), getattr(args, f"{split}_images")
        if bool(json_file) != bool(images):
            given, other = ("json", "images") if json_file else ("images", "json")
            raise ConfigError(f"--{split}-{given} needs --{split}-{other} as well.")
        if json_file:
            cfg.DATASETS[key] = (f"custom_{split}",)
            cfg.DATASETS[files] = tuple(os.path.abspath(os.path.expanduser(path)) for path in (json_file, images))
    if args.train_json and not args.val_json:
        cfg.DATASETS.TEST = ()  # the config's own test set has other classes
    if args.val_json and not args.train_json and not args.eval_only:
        raise ConfigError("--val-json without --train-json: give both, or --eval-only.")
    register_files(cfg)


def _fit_classes(cfg: CfgNode, names: list[str], source: str) -> None:
    """Set the number of classes everywhere in the config, and log what changes."""
    keys = method_of(cfg).class_count_keys
    before = {key: get_value(cfg, key) for key in keys}
    set_num_classes(cfg, len(names))
    changed = [
        f"{key} was {count}{' with the background' if keys[key] else ''}"
        for key, count in before.items()
        if count != get_value(cfg, key)
    ]
    if changed:
        logger.info("Number of classes: %d, as in %s (%s).", len(names), source, ", ".join(changed))
    stuff, head = MetadataCatalog.get(source).get("stuff_classes"), cfg.MODEL.SEM_SEG_HEAD
    if stuff and head.NUM_CLASSES != len(stuff):
        logger.info("Number of semantic classes: %d, as in %s (was %d).", len(stuff), source, head.NUM_CLASSES)
        head.NUM_CLASSES = len(stuff)


def _check_test_sets(cfg: CfgNode) -> None:
    """Find faults now that would stop the evaluation after training; set INPUT.VALUE_RANGE if it is empty."""
    for name in cfg.DATASETS.TEST:
        require_registered(name)
        files = check_images(name, training=False, leave_out=leaves_out(name))
        cfg.INPUT.VALUE_RANGE = common_range(files, name, cfg.INPUT.VALUE_RANGE)


def _fit_to_training_data(cfg: CfgNode) -> None:
    if not cfg.DATASETS.TRAIN:
        raise ConfigError("DATASETS.TRAIN is empty: set it to a data set, or give --train-json and --train-images.")
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    files = [check_images(name, training=True, filter_empty=filter_empty) for name in cfg.DATASETS.TRAIN]
    title = ", ".join(cfg.DATASETS.TRAIN)
    cfg.INPUT.VALUE_RANGE = common_range(list(itertools.chain(*files)), title, cfg.INPUT.VALUE_RANGE)
    _check_test_sets(cfg)
    first, *others = cfg.DATASETS.TRAIN
    names = class_names(first)
    for other in (*others, *cfg.DATASETS.TEST):
        check_same_classes(first, other)
    _fit_classes(cfg, names, first)


def _shown(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _fit_to_checkpoint(cfg: CfgNode) -> None:
    """For evaluation: use the test sets' classes, which must be those of the checkpoint, if it has any."""
    if not cfg.DATASETS.TEST:
        raise ConfigError("DATASETS.TEST is empty: set it to a data set, or give --val-json and --val-images.")
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        raise CheckpointError("--eval-only needs weights: add MODEL.WEIGHTS FILE at the end of the command.")
    config, trained = None, None
    if os.path.isfile(split_query(weights)[0]):
        config, trained = read_checkpoint_info(weights)
    cfg.INPUT.VALUE_RANGE = cfg.INPUT.VALUE_RANGE or trained_range(config)
    _check_test_sets(cfg)
    first, *others = cfg.DATASETS.TEST
    names = class_names(first)
    for other in others:
        check_same_classes(first, other)
    if trained is not None and list(trained) != names:
        raise DatasetError(
            f"{weights} was trained on {len(trained)} classes ({_shown(trained)}), but {first} has {len(names)} "
            f"({_shown(names)}): evaluate on a data set with the same classes."
        )
    _fit_classes(cfg, names, first)


def check_start(cfg: CfgNode) -> None:
    """Check weights that are given by name, and whether the config prepares images as they were trained on."""
    pixels = check_named(cfg.MODEL.WEIGHTS)
    if pixels is None:
        return
    wanted = {"INPUT.FORMAT": "RGB", "MODEL.PIXEL_MEAN": list(pixels.mean), "MODEL.PIXEL_STD": list(pixels.std)}
    if cfg.MODEL.WEIGHTS.startswith("torchvision://"):
        wanted["MODEL.RESNETS.STRIDE_IN_1X1"] = False
    other = [f"{key} {str(value).replace(' ', '')}" for key, value in wanted.items() if get_value(cfg, key) != value]
    if other:
        logger.warning("%s were trained on other images: set %s.", cfg.MODEL.WEIGHTS, " ".join(other))


def _fit_device(cfg: CfgNode, num_gpus: int) -> None:
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type != "cuda":
        if comm.get_world_size() > 1 and dist.get_backend() == "nccl":
            raise ConfigError(f"MODEL.DEVICE {cfg.MODEL.DEVICE} with several processes needs --num-gpus 0.")
        return
    if num_gpus == 0:
        cfg.MODEL.DEVICE = "cpu"
    elif not torch.cuda.is_available():
        logger.info("No GPU found: MODEL.DEVICE is set to cpu.")
        cfg.MODEL.DEVICE = "cpu"
    elif device.index is not None and device.index >= torch.cuda.device_count():
        raise ConfigError(f"MODEL.DEVICE is {device}; the last GPU here is cuda:{torch.cuda.device_count() - 1}.")


def _check_solver(cfg: CfgNode) -> None:
    """
    Check what would otherwise fail only after the model is built: the batch must divide among the processes,
    SOLVER.PATIENCE needs a test set, and the schedule must be valid (tried on a dummy parameter).
    """
    processes = cfg.SOLVER.REFERENCE_WORLD_SIZE or comm.get_world_size()
    if cfg.SOLVER.IMS_PER_BATCH % processes:
        raise ConfigError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; it must be a multiple of the {processes} processes."
        )
    if cfg.SOLVER.PATIENCE and not cfg.DATASETS.TEST:
        raise ConfigError("SOLVER.PATIENCE needs a DATASETS.TEST to evaluate on, or --val-json and --val-images.")
    cfg = cfg.clone()
    cfg.SOLVER.STEPS = [
        step for step in cfg.SOLVER.STEPS if step <= cfg.SOLVER.MAX_ITER
    ]  # Detectron2 warns about others
    try:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], cfg.SOLVER.BASE_LR)
        build_lr_scheduler(cfg, optimizer)
    except (AssertionError, ValueError, ArithmeticError) as error:
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME {cfg.SOLVER.LR_SCHEDULER_NAME} does not work with these SOLVER values: {error}."
        ) from error


def kept_schedule(args) -> tuple[str, ...]:
    """The keys of the schedule that the arguments give in iterations, whatever the rest of it."""
    given = getattr(args, "freeze_backbone", None) is not None  # not an argument of evaluations
    return ("SOLVER.FREEZE_BACKBONE_ITER",) if given else ()


def setup(args, cfg: Optional[CfgNode] = None) -> CfgNode:
    """
    The frozen config of a run, fitted to overrides, data, number of classes and device; also sets up logging and seeds.
    The config of an evaluation is written to ``OUTPUT_DIR/inference/config.yaml``; the trainer writes its own.

    Args:
        args: from :func:`argument_parser`.
        cfg: the config; None: that of ``args.config_file`` and ``args.opts``.

    Raises:
        ConfigError, DatasetError, CheckpointError: see `errors`.
    """
    cfg = load_config(args.config_file, args.opts) if cfg is None else cfg
    if kept_schedule(args):
        cfg.SOLVER.FREEZE_BACKBONE_ITER = args.freeze_backbone
    check_config(cfg)
    if cfg.MODEL.KEYPOINT_ON or cfg.MODEL.LOAD_PROPOSALS:
        raise ConfigError("MODEL.KEYPOINT_ON and MODEL.LOAD_PROPOSALS are not supported; set both to False.")
    rank = comm.get_rank()
    try:
        setup_logging(cfg.OUTPUT_DIR, rank)
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR {cfg.OUTPUT_DIR} is not writable: {error.strerror}.") from error
    logger.debug("Environment:\n%s", doctor.table(doctor.diagnose()))
    logger.debug("Arguments: %s", args)

    register_own_data(cfg, args)
    if args.eval_only:
        _fit_to_checkpoint(cfg)
    else:
        _check_solver(cfg)
        require_trackers(cfg)
        check_start(cfg)
        _fit_to_training_data(cfg)
    _fit_device(cfg, args.num_gpus)
    if cfg.MODEL.DEVICE == "cpu":
        tune_cpu()
    cfg.freeze()

    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + rank)
    torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK and not args.eval_only
    logger.debug("Config:\n%s", cfg.dump())
    if comm.is_main_process():
        if args.eval_only:
            write_bytes(os.path.join(cfg.OUTPUT_DIR, "inference", "config.yaml"), cfg.dump().encode())
        logger.info(
            "%s on %s; config, log and results in %s.", cfg.MODEL.META_ARCHITECTURE, _where(cfg), cfg.OUTPUT_DIR
        )
    return cfg


def _where(cfg: CfgNode) -> str:
    kind = torch.cuda.get_device_name() if torch.device(cfg.MODEL.DEVICE).type == "cuda" else "CPU"
    size = comm.get_world_size()
    return kind if size == 1 else f"{size} x {kind}"
