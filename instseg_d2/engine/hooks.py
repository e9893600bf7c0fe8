"""Hooks of the trainer: checkpoints, evaluation with the best checkpoint, and progress."""

import datetime
import importlib.util
import logging
import math
import os
import sys
from typing import Callable

from detectron2.config import CfgNode
from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import EventWriter, JSONWriter, TensorboardXWriter, get_event_storage
from tqdm import tqdm

from ..checkpoint import InstSegCheckpointer, read_extra
from ..console import is_terminal
from ..errors import CheckpointError
from .log import PROGRESS_LOGGER
from .rng import get_rng_state, preserve_rng_state
from .trackers import build_trackers

__all__ = ["EvaluationHook", "PeriodicCheckpoint", "ProgressBar", "ProgressLines", "Writers"]

logger = logging.getLogger(__name__)


class PeriodicCheckpoint(hooks.PeriodicCheckpointer):
    """
    Detectron2's hook; each file also stores the random states of all processes. Writes ``model_<iteration>.pth`` every
    ``period`` iterations (0: never) and ``model_final.pth`` after the last one. Register it on all processes.
    """

    def __init__(self, checkpointer: InstSegCheckpointer, period: int):
        super().__init__(checkpointer, period if period > 0 else sys.maxsize)

    def after_step(self):
        done = self.trainer.iter + 1
        if done % self.period == 0 or done == self.max_iter:
            self._save(self.trainer.iter)

    def after_train(self):
        done = self.trainer.iter
        if self.trainer.start_iter < done == self.trainer.max_iter < self.max_iter:  # SOLVER.PATIENCE has ended it
            self.max_iter = done
            self._save(done - 1)

    def _save(self, iteration: int):
        self.trainer.share_buffers()
        self.step(iteration, rng=comm.gather(get_rng_state()))


class EvaluationHook(hooks.EvalHook):
    """
    Detectron2's hook, without an effect on the random numbers of training. It also saves ``model_best.pth``, the
    weights with the highest ``metric`` so far, including resumed runs. After ``patience`` evaluations in a row without
    a better one, training ends. Register it on all processes.

    Detectron2's BestCheckpointer forgets the best result when a run is resumed, makes its file the checkpoint to
    resume from, and accepts only one name for the metric.
    """

    def __init__(
        self, evaluate: Callable, period: int, metric: str, checkpointer: InstSegCheckpointer, patience: int = 0
    ):
        """
        Args:
            evaluate: returns the results, a nested dict (on the main process).
            period: evaluate every ``period`` iterations (0: never) and after the last one.
            metric: "task/name", e.g. "segm/AP"; without masks, "bbox/AP" replaces "segm/AP".
            patience: 0: train to the end.
        """
        super().__init__(period, self._evaluate_and_keep_best)
        self._evaluate = evaluate
        self._metric = metric
        self._checkpointer = checkpointer
        self._patience = patience
        self._best = -math.inf
        self._best_after = 0  # iterations; 0: there is none
        self._evaluated_after = 0  # iterations

    def before_train(self):
        path = os.path.join(self._checkpointer.save_dir, "model_best.pth")
        if self.trainer.start_iter > 0 and os.path.isfile(path):
            try:
                best = read_extra(path)["best"]
            except CheckpointError as error:
                logger.warning("%s It will be replaced at the next evaluation.", error)
            else:
                # A best checkpoint from a later iteration must come from another run.
                if best["iteration"] < self.trainer.start_iter:
                    self._best, self._best_after = best["value"], best["iteration"] + 1
        self._stop_if_patience_ends(self.trainer.start_iter, known=self._best_after > 0)

    def after_step(self):
        super().after_step()
        done = self.trainer.iter + 1
        if self._evaluated_after == done:
            self._stop_if_patience_ends(done)

    def after_train(self):
        done = self.trainer.iter
        if done == self.trainer.max_iter != self._evaluated_after:  # otherwise training failed or was stopped
            super().after_train()

    def _evaluate_and_keep_best(self) -> dict:
        with preserve_rng_state():  # training is the same with and without evaluation
            results = self._evaluate()
        if results:
            self._keep_best(flatten_results_dict(results))
        self._evaluated_after = self.trainer.iter + 1
        return results

    def _stop_if_patience_ends(self, done: int, known: bool = True) -> None:
        """
        End the training after ``done`` iterations if too many evaluations were not better.

        Args:
            known: whether the best result is known; otherwise training goes on.
        """
        if not self._patience or done >= self.trainer.max_iter:
            return
        worse = done // self._period - self._best_after // self._period
        if comm.all_gather(known and worse >= self._patience)[0]:
            logger.info("Training ends after %d iterations: the last %d evaluations were not better.", done, worse)
            self.trainer.max_iter = done

    def _value(self, results: dict):
        """(name, value) of the metric on the first evaluated data set; None if it is not among the results."""
        for wanted in (self._metric, self._metric.replace("segm/", "bbox/")):
            for name, value in results.items():
                if name == wanted or name.endswith(f"/{wanted}"):
                    return name, float(value)
        logger.warning(
            "TEST.BEST_METRIC %s is not among the results, so no best checkpoint is saved; the results are: %s.",
            self._metric,
            ", ".join(sorted(results)),
        )
        return None

    def _keep_best(self, results: dict):
        found = self._value(results)
        if found is None:
            self._best_after = self.trainer.iter + 1  # without the metric, training goes on
            return
        if not found[1] > self._best:  # nan is never the best
            return
        name, self._best = found
        self._best_after = min(self.trainer.iter + 1, self.trainer.max_iter)
        last = min(self.trainer.iter, self.trainer.max_iter - 1)
        best = {"metric": name, "value": self._best, "iteration": last}
        self._checkpointer.save("model_best", model_only=True, tag=False, iteration=last, best=best)
        logger.info("Best %s so far: %.2f after %d iterations.", name, self._best, last + 1)


def _losses(storage) -> dict:
    """Median of the last 20 values of each loss, the total first."""
    values = {name: history.median(20) for name, history in storage.histories().items() if "loss" in name}
    return dict(sorted(values.items(), key=lambda item: (item[0] != "total_loss", item[0])))


class ProgressBar(HookBase):
    """A bar with losses, speed and remaining time; only on a terminal."""

    def before_train(self):
        start, total = self.trainer.start_iter, self.trainer.max_iter
        self._bar = tqdm(initial=start, total=total, desc="train", unit="it", disable=not is_terminal())

    def after_step(self):
        if not self._bar.disable:
            losses = {k.replace("loss_", "").replace("_loss", ""): v for k, v in _losses(self.trainer.storage).items()}
            self._bar.set_postfix({k: f"{v:.3g}" for k, v in losses.items()}, refresh=False)
            self._bar.update()

    def after_train(self):
        self._bar.close()


class ProgressLines(EventWriter):
    """Each call logs one line: iteration, losses, learning rate, speed and remaining time."""

    def __init__(self, max_iter: int):
        self._max_iter = max_iter
        self._logger = logging.getLogger(PROGRESS_LOGGER)
        self._written = 0

    def write(self):
        storage = get_event_storage()
        done = storage.latest().get("total_loss", (0.0, -1))[1] + 1
        if done <= self._written:
            return
        self._written = done
        parts = [f"iter {done}/{self._max_iter}"]
        parts += [f"{name} {value:.4g}" for name, value in _losses(storage).items()]
        if "lr" in storage.histories():
            parts.append(f"lr {storage.history('lr').latest():.3g}")
        if "time" in storage.histories():
            seconds = storage.history("time").median(100)
            left = datetime.timedelta(seconds=int(seconds * (self._max_iter - done)))
            parts += [f"{1 / max(seconds, 1e-9):.3g} it/s", f"time left {left}"]
        self._logger.info("  ".join(parts))


class _NoPictures(EventWriter):
    """Drops the pictures that no writer takes."""

    def write(self):
        get_event_storage().clear_images()


class Writers(hooks.PeriodicWriter):
    """
    Writes progress lines, ``metrics.json``, TensorBoard files (if installed) and what LOGGING.WRITERS names every 20
    iterations. The files are opened only when training starts, because before that they may be those of an earlier run.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__([], period=20)
        self._cfg = cfg

    def before_train(self):
        folder = self._cfg.OUTPUT_DIR
        os.makedirs(folder, exist_ok=True)
        self._writers += [ProgressLines(self.trainer.max_iter), JSONWriter(os.path.join(folder, "metrics.json"))]
        self._writers += build_trackers(self._cfg, resumed=self.trainer.start_iter > 0)
        if importlib.util.find_spec("tensorboard"):
            self._writers.append(TensorboardXWriter(folder))  # the last: it also drops the pictures
        else:
            self._writers.append(_NoPictures())
            logger.info("No TensorBoard files are written: tensorboard is not installed.")
