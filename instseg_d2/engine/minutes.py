"""Fits the schedule of a recipe to the time that a training may take on this machine."""

import contextlib
import gc
import itertools
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Collection, Sequence
from typing import Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules

from ..checkpoint import InstSegCheckpointer
from ..config import get_value, tested_in_tiles
from ..config.schedule import SCHEDULE, rescale, with_values
from ..errors import ConfigError
from ..evaluation.run import detector
from ..inference.tiles import model_for_test, tile_boxes
from .rng import preserve_rng_state
from .trainer import Trainer

__all__ = ["fit_to_minutes"]

logger = logging.getLogger(__name__)

WARM_UP = 3  # iterations that fill caches, at least; new image sizes are slow, so half as long as is measured then
SHARE = 0.05  # of the time, for measuring
AIM = 0.95  # of the time: trainings took 6 % longer than the measurements say, on average
IMAGES = 8  # of each test set, for measuring
DRAWN = 100  # batches, at most, to see which sizes are drawn
BATCHES = 4  # for precise statistics of batch norms, for measuring


def _number_of_evaluations(cfg: CfgNode) -> int:
    return math.ceil(cfg.SOLVER.MAX_ITER / cfg.TEST.EVAL_PERIOD) if cfg.TEST.EVAL_PERIOD > 0 else 1


def _pixels(batch: Sequence[dict]) -> int:
    """Of a batch in which every image is padded to the largest."""
    height, width = (max(x["image"].shape[side] for x in batch) for side in (-2, -1))
    return len(batch) * height * width


def _typical_seconds(seconds: Sequence[float], pixels: Sequence[float], typical: float) -> float:
    """
    The time of a step with ``typical`` pixels, from a few steps: their mean, corrected along the line that fits best
    (a control variate, which makes up for the sizes that were drawn by chance).
    """
    mean, size = statistics.mean(seconds), statistics.mean(pixels)
    slope = np.polyfit(pixels, seconds, 1)[0] if len(set(pixels)) > 1 else 0.0
    return mean + min(max(float(slope), 0.0), mean / size) * (typical - size)


def _iteration_seconds(trainer: Trainer, share: float) -> float:
    """Time of a step with a typical batch, measured for about ``share`` seconds; the same on all processes."""
    seen: list[int] = []  # pixels of each batch
    batches, each = trainer.batches, trainer.cfg.SOLVER.ACCUMULATE

    def watched():
        for batch in batches:
            seen.append(_pixels(batch))
            yield batch

    trainer.batches = watched()
    steps, warm, begun = [], False, time.perf_counter()
    with EventStorage(0) as trainer.storage:
        for trainer.iter in itertools.count():
            start = time.perf_counter()
            trainer.run_step()
            steps.append((time.perf_counter() - start, sum(seen[-each:])))
            seconds = time.perf_counter() - begun
            enough = seconds >= (share if len(steps) >= 5 else 4 * share) if warm else seconds >= share / 2
            enough = comm.all_gather(enough)[0]  # no process may go on alone
            if enough and warm:
                break
            if enough and len(steps) >= WARM_UP:
                steps, warm, begun = [], True, time.perf_counter()
    begun = time.perf_counter()
    for _ in itertools.islice(trainer.batches, DRAWN):
        if time.perf_counter() - begun > share / 4:
            break
    trainer.batches = batches
    return comm.all_gather(_typical_seconds(*zip(*steps), each * statistics.mean(seen)))[0]


@torch.no_grad()
def _statistics_seconds(cfg: CfgNode, trainer: Trainer) -> float:
    """Time for the precise statistics of batch norms, estimated from a few batches."""
    if not cfg.TEST.PRECISE_BN.ENABLED or not get_bn_modules(trainer.model):
        return 0.0
    start = time.perf_counter()
    with EventStorage(0):
        for batch in itertools.islice(trainer.batches, BATCHES):
            trainer.model(batch)
    return comm.all_gather((time.perf_counter() - start) / BATCHES * cfg.TEST.PRECISE_BN.NUM_ITER)[0]


@torch.no_grad()
def _evaluation_seconds(cfg: CfgNode, trainer: Trainer, share: float) -> float:
    """
    Time to run over all test sets, estimated from their first images, for about ``share`` seconds each, and from the
    number of tiles of each image.
    """
    run, total = detector(model_for_test(cfg, trainer.networks[-1]), "run_lengths"), 0.0
    tile = tested_in_tiles(cfg)

    def parts(record: dict) -> int:
        return len(tile_boxes((record["height"], record["width"]), *tile)) if tile else 1

    for name in cfg.DATASETS.TEST:
        loader, ends, seen = trainer.build_test_loader(cfg, name), [time.perf_counter()], []
        for batch in itertools.islice(loader, IMAGES):
            run(batch)
            ends.append(time.perf_counter())
            seen.append(sum(map(parts, batch)))
            if len(seen) > 1 and ends[-1] - ends[0] > share:
                break
        if seen:
            first = min(len(seen) - 1, 1)  # the first image, if it is not the only one, fills caches
            records = DatasetCatalog.get(name) if tile else []
            known = [parts(record) for record in records if record.get("height") and record.get("width")]
            of_image = statistics.mean(known or seen)
            total += (ends[-1] - ends[first]) / sum(seen[first:]) * of_image * len(loader)
    return comm.all_gather(total)[0]


@contextlib.contextmanager
def _quietly():
    """Log nothing but errors: the training that follows says everything again."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def trial(cfg: CfgNode, trainer_class: type):
    """A trainer that is ready to take steps, and is then thrown away. Random numbers are not affected."""
    with tempfile.TemporaryDirectory() as folder, _quietly(), preserve_rng_state():
        values = {"OUTPUT_DIR": folder, "DATASETS.TEST": (), "TEST.PRECISE_BN.ENABLED": False}
        trainer = trainer_class(with_values(cfg, values))
        trainer.checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
        trainer.prepare()
        yield trainer
        trainer.batches.close()
    del trainer
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _measure(cfg: CfgNode, share: float, trainer_class: type) -> tuple[float, float, float]:
    """Seconds of: setting up, an iteration, an evaluation with its precise statistics."""
    start = time.perf_counter()
    with trial(cfg, trainer_class) as trainer:
        set_up = comm.all_gather(time.perf_counter() - start)[0]
        iteration = _iteration_seconds(trainer, share)
        evaluation = _statistics_seconds(cfg, trainer) + _evaluation_seconds(cfg, trainer, share)
    return set_up, iteration, evaluation


def _schedule_of_run(folder: str) -> dict:
    """The schedule of the run in a folder, by full names; empty if there is none."""
    checkpointer = InstSegCheckpointer(torch.nn.Identity(), folder)
    text = checkpointer.read_last().get("cfg") if checkpointer.has_checkpoint() else None
    run = CfgNode.load_cfg(text) if text else None
    return {} if run is None else {key: get_value(run, key) for key in SCHEDULE}


def fit_to_minutes(
    cfg: CfgNode,
    minutes: float,
    begun: Optional[float] = None,
    resume: bool = False,
    kept: Collection[str] = (),
    trainer_class: type = Trainer,
) -> CfgNode:
    """
    Stretch or cut the schedule so that training, with its evaluations, ends in time. Call it in all processes.

    The time of a step and of an evaluation are measured on a model that is then thrown away; random numbers are not
    affected, so that the config returned gives the same training without measuring.

    Args:
        minutes: from ``begun`` to the end of the last evaluation, of which 95 % are planned.
        begun: ``time.perf_counter()`` at the start of the command. None: the training will be another command.
        resume: keep the schedule of the run in ``OUTPUT_DIR``, if there is one.
        kept: keys of the schedule that stay as they are.

    Raises:
        ConfigError: the time is too short for a single iteration.
    """
    cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())  # now, not after the schedule is fitted
    earlier = _schedule_of_run(cfg.OUTPUT_DIR) if resume else {}
    if earlier:
        iterations = earlier["SOLVER.MAX_ITER"]
        logger.info("--minutes: the run in %s keeps its schedule of %d iterations.", cfg.OUTPUT_DIR, iterations)
        return with_values(cfg, earlier)
    logger.info("Measuring this machine, to train for %g minutes.", minutes)
    set_up, iteration, evaluation = _measure(cfg, SHARE * 60 * minutes, trainer_class)
    passed = 0.0 if begun is None else time.perf_counter() - begun
    around = passed + set_up + _number_of_evaluations(cfg) * evaluation
    max_iter = comm.all_gather(int((AIM * 60 * minutes - around) / iteration))[0]
    if max_iter < 1:
        raise ConfigError(
            f"--minutes {minutes:g} is too short: here, everything but the iterations takes {around / 60:.2g} minutes, "
            f"and an iteration {iteration:.2g} seconds."
        )
    fitted = rescale(cfg, max_iter, kept)
    changes = [f"{key} {get_value(cfg, key)} -> {get_value(fitted, key)}" for key in SCHEDULE]
    logger.info(
        "An iteration takes %.3g s and an evaluation %.3g s here: %s.", iteration, evaluation, ", ".join(changes)
    )
    return fitted
