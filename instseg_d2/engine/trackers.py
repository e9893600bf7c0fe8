"""Sends the metrics and pictures of a training to Weights & Biases or MLflow, through their own packages."""

import importlib.util
import json
import logging
import os
import re
import sys
from collections import defaultdict

import numpy as np
import yaml
from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from ..config import get_cfg
from ..config.values import items
from ..errors import ConfigError, sentence
from ..files import write_bytes

__all__ = ["build_trackers", "require_trackers"]

logger = logging.getLogger(__name__)

RUNS = "trackers.json"  # in OUTPUT_DIR: the id of the run at each service, for --resume


class Tracker(EventWriter):
    """
    Base class. A service that stops working ends its own records, but not the training.

    Args:
        cfg: the config of the training.
        run_id: continue this run of the service; None: start a new one.
    """

    name = ""  # of the package

    def __init__(self, cfg: CfgNode, run_id=None):
        self._written = -1  # last iteration
        self._working = True
        try:
            self.run_id = self.start(cfg, os.path.basename(os.path.abspath(cfg.OUTPUT_DIR)), run_id)
        except Exception as error:  # services raise errors of all kinds
            raise ConfigError(f"LOGGING.WRITERS: {self.name} does not start: {sentence(error)}") from error

    def start(self, cfg: CfgNode, title: str, run_id) -> str:
        """Start or continue a run; return its id."""
        raise NotImplementedError

    def send(self, metrics: dict, pictures: dict, iteration: int) -> None:
        """Send numbers, and pictures (H, W, 3) uint8, of an iteration."""
        raise NotImplementedError

    def end(self, failed: bool) -> None:
        """End the run."""
        raise NotImplementedError

    def _try(self, send, *args) -> None:
        try:
            if self._working:
                send(*args)
        except Exception as error:
            self._working = False
            logger.warning("%s gets no more metrics of this training: %s", self.name, sentence(error))

    def write(self) -> None:
        storage = get_event_storage()
        metrics, pictures = defaultdict(dict), defaultdict(dict)
        for key, (value, iteration) in storage.latest_with_smoothing_hint(20).items():
            if iteration > self._written:
                metrics[iteration][key] = float(value)
        for key, picture, iteration in storage._vis_data:  # as Detectron2's writer for TensorBoard does
            pictures[iteration][key] = np.ascontiguousarray(np.moveaxis(np.asarray(picture), 0, -1))
        for iteration in sorted({*metrics, *pictures}):
            self._try(self.send, metrics[iteration], pictures[iteration], iteration)
        self._written = max(metrics, default=self._written)

    def close(self) -> None:
        self._try(self.end, sys.exc_info()[0] is not None)  # an error ends the training


class WandbTracker(Tracker):
    """Weights & Biases. ``WANDB_MODE=offline`` keeps everything on this machine."""

    name = "wandb"

    def start(self, cfg, title, run_id):
        import wandb

        self._run = wandb.init(
            project=cfg.LOGGING.PROJECT,
            name=title,
            dir=cfg.OUTPUT_DIR,
            config=yaml.safe_load(cfg.dump()),
            id=run_id,
            resume="allow" if run_id else None,
        )
        return self._run.id

    def send(self, metrics, pictures, iteration):
        import wandb

        images = {key: wandb.Image(picture) for key, picture in pictures.items()}
        self._run.log({**metrics, **images}, step=iteration)

    def end(self, failed):
        self._run.finish(exit_code=int(failed))


class MLflowTracker(Tracker):
    """MLflow, at the address in ``MLFLOW_TRACKING_URI``; parameters are the config values that are not defaults."""

    name = "mlflow"

    def start(self, cfg, title, run_id):
        import mlflow

        mlflow.set_experiment(cfg.LOGGING.PROJECT)
        run = mlflow.start_run(run_id=run_id, run_name=None if run_id else title)
        if run_id is None:
            default = dict(items(get_cfg()))
            changed = {
                key: str(value)[:250]
                for key, value in items(cfg)
                if not isinstance(value, CfgNode) and value != default.get(key)
            }
            for start in range(0, len(changed), 100):  # MLflow takes no more at once
                mlflow.log_params(dict(list(changed.items())[start : start + 100]))
        return run.info.run_id

    def send(self, metrics, pictures, iteration):
        import mlflow

        # MLflow allows few characters in names, but class names are in some.
        mlflow.log_metrics({re.sub(r"[^\w./ -]", "_", key): x for key, x in metrics.items()}, step=iteration)
        for key, picture in pictures.items():
            mlflow.log_image(picture, f"{key}/{iteration}.png")

    def end(self, failed):
        import mlflow

        mlflow.end_run("FAILED" if failed else "FINISHED")


TRACKERS = {kind.name: kind for kind in (WandbTracker, MLflowTracker)}


def require_trackers(cfg: CfgNode) -> None:
    """
    Raises:
        ConfigError: a package that LOGGING.WRITERS names is not installed.
    """
    for name in cfg.LOGGING.WRITERS:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"LOGGING.WRITERS names {name}, which is not installed: pip install {name}")


def build_trackers(cfg: CfgNode, resumed: bool) -> list[Tracker]:
    """
    The writers of LOGGING.WRITERS, started.

    Args:
        resumed: continue the runs of the training in OUTPUT_DIR.

    Raises:
        ConfigError: a service does not start, for example without its login.
    """
    path = os.path.join(cfg.OUTPUT_DIR, RUNS)
    runs = {}
    if resumed and os.path.isfile(path):
        with open(path, "rb") as file:
            runs = json.load(file)
    trackers = [TRACKERS[name](cfg, runs.get(name)) for name in cfg.LOGGING.WRITERS]
    if trackers:
        write_bytes(path, json.dumps({tracker.name: tracker.run_id for tracker in trackers}).encode())
    return trackers
