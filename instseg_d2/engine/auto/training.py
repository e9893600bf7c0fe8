"""Trains with a recipe of its own: writes it, fits it to a time, and keeps it when the run is resumed."""

import copy
import logging
import os
import tempfile
from dataclasses import replace
from typing import Optional

from detectron2.config import CfgNode
from detectron2.utils import comm

from ...config import get_value, load_config
from ...config.schedule import SCHEDULE
from ...errors import ConfigError
from ..earlier_run import set_aside
from ..minutes import fit_to_minutes
from ..setup import kept_schedule, setup
from .plan import Plan, make_plan, output_folder, overrides, without_data

__all__ = ["auto_setup", "fit_plan"]

logger = logging.getLogger(__name__)

RECIPE = "recipe.yaml"


def _of_file(args, file: str, opts=()):
    """The arguments of a training with a recipe and these overrides."""
    args = copy.copy(args)
    args.config_file, args.opts = file, list(opts)
    args.train_json = args.train_images = args.val_json = args.val_images = None
    return args


def _fitted(plan: Plan, args, begun: Optional[float], cfg: CfgNode) -> tuple[Plan, CfgNode]:
    """Fit the schedule of a config, and put it into its plan."""
    fitted = fit_to_minutes(cfg, args.minutes, begun, args.resume, kept_schedule(args))
    reason = f"for {args.minutes:g} minutes on this machine"
    changed = {key: (value, reason) for key in SCHEDULE if (value := get_value(fitted, key)) != get_value(cfg, key)}
    opts = [word for key, value in overrides(plan.opts).items() if key not in changed for word in (key, value)]
    return replace(plan, decisions={**plan.decisions, **changed}, opts=tuple(opts)), fitted


def fit_plan(plan: Plan, args) -> Plan:
    """The plan with a schedule for a training of ``args.minutes`` later, see `fit_to_minutes`. Leaves no files."""
    with tempfile.TemporaryDirectory() as folder:
        file = os.path.join(folder, RECIPE)
        plan.write(file)
        cfg = setup(_of_file(args, file), load_config(file, ["OUTPUT_DIR", folder]))
        return _fitted(plan, args, None, cfg)[0]


def auto_setup(args, begun: float) -> CfgNode:
    """
    Like `setup`, with a recipe made for the data and this machine, which is written to ``OUTPUT_DIR/recipe.yaml``.
    Training with that file is the same training. A resumed run keeps its recipe and data, but other overrides count.
    Call it in all processes.

    Args:
        begun: ``time.perf_counter()`` at the start of the command, for --minutes.

    Raises:
        ConfigError: the run to be resumed has no recipe.
    """
    folder, plan, earlier = os.path.expanduser(output_folder(args)), None, ""
    file = os.path.join(folder, RECIPE)
    kept = args.resume and os.path.isfile(file)
    if args.resume and not kept and os.path.isfile(os.path.join(folder, "last_checkpoint")):
        config = os.path.join(folder, "config.yaml")
        raise ConfigError(f"the run in {folder} has no {RECIPE}: resume it with --config-file {config} instead.")
    used = os.path.join(folder, "augmented.yaml") if args.augmented and not kept else file  # drawing leaves a run alone
    if comm.is_main_process() and not kept:
        plan = make_plan(args, file)
        earlier = "" if args.augmented else set_aside(folder, RECIPE)
        plan.write(used)
    plan = comm.all_gather(plan)[0]  # the others wait for the file
    cfg = setup(_of_file(args, used, () if plan else (*without_data(args.opts), "OUTPUT_DIR", folder)))
    if earlier:
        logger.info("The results of the earlier run were moved to %s.", earlier)
    if plan is None:
        logger.info("--auto: the run in %s keeps its recipe.", cfg.OUTPUT_DIR)
        return fit_to_minutes(cfg, args.minutes, begun, True, kept_schedule(args)) if args.minutes else cfg
    if args.minutes:
        plan, cfg = _fitted(plan, args, begun, cfg)
        if comm.is_main_process():
            plan.write(used)
    logger.info("The recipe, with reasons, is in %s.\n%s", used, plan.table())
    return cfg
