"""One trainer for every method: a loop over Detectron2's hooks that resumes exactly."""

import contextlib
import logging
import math
import os
import time
import weakref
from collections import OrderedDict
from typing import Optional

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer, TrainerBase, create_ddp_model, hooks
from detectron2.evaluation import DatasetEvaluators, print_csv_format
from detectron2.solver import build_lr_scheduler
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import get_bn_modules

from ..checkpoint import InstSegCheckpointer
from ..config import home_expanded
from ..data import build_test_loader, build_train_loader
from ..data.coco import class_information
from ..data.mixing import unmixed
from ..errors import ConfigError, sentence
from ..evaluation import build_evaluator, build_report, evaluate, write_results
from ..files import remove_unfinished, write_bytes
from ..inference.precision import autocast_type
from ..inference.tiles import model_for_test
from ..methods import methods
from ..modeling.activation_checkpointing import checkpoint_activations
from ..modeling.build import build
from .averaging import AveragedModel
from .bad_steps import BadSteps
from .batch_norms import share_buffers, sync_batchnorm_on_cpu
from .earlier_run import require_same_run, set_aside, truncate_metrics
from .freezing import FreezeBackbone, FreezeNorms
from .hooks import EvaluationHook, PeriodicCheckpoint, ProgressBar, Writers
from .rng import set_rng_state
from .solver import build_optimizer

__all__ = ["Trainer"]

logger = logging.getLogger(__name__)

GRADIENT_NORM = "gradient_norm"  # over the full model, before clipping


def _kind(param_groups: list) -> set:
    """The keys that distinguish the states of SGD, AdamW and Muon."""
    return {"betas", "momentum", "matrices"} & param_groups[0].keys()


class Trainer(TrainerBase):
    """
    Trains the model of a config and evaluates it.

    ``trainer = Trainer(cfg); trainer.resume_or_load(resume); trainer.train()``. Override the ``build_*`` class methods
    to change a part. Files in ``cfg.OUTPUT_DIR``: model_<iteration>.pth, model_final.pth, model_best.pth,
    last_checkpoint, config.yaml, metrics.json, TensorBoard events, inference/.

    With SOLVER.EMA.ENABLED, the average of the weights (:class:`.averaging.AveragedModel`) is evaluated and saved.

    A resumed run continues exactly: iteration, optimiser, schedule, gradient scaler, random numbers and images are as
    if it had not been interrupted, except that TEST.PRECISE_BN draws new images.

    A step whose loss or gradient is not finite is skipped and logged, and its batch is saved to bad_batch.pth
    (bad_batch_<process>.pth with several processes). Ten such steps in a row end the training.
    """

    def __init__(self, cfg: CfgNode):
        super().__init__()
        cfg = DefaultTrainer.auto_scale_workers(home_expanded(cfg), comm.get_world_size())
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        # Determines the order and augmentation of the images; stored in the checkpoint.
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()

        model = self.build_model(cfg).to(memory_format=torch.channels_last)
        self.device = torch.device(cfg.MODEL.DEVICE)
        on_gpu = self.device.type == "cuda"
        if not on_gpu and comm.get_world_size() > 1:
            sync_batchnorm_on_cpu(model)
        checkpoint_activations(model, cfg.MODEL.ACTIVATION_CHECKPOINTING)
        model.train()
        self.averaged = AveragedModel(model, cfg.SOLVER.EMA.DECAY) if cfg.SOLVER.EMA.ENABLED else None
        self.optimizer = self.build_optimizer(cfg, model)
        self.scheduler = build_lr_scheduler(cfg, self.optimizer)
        device_ids = [torch.cuda.current_device()] if on_gpu else None
        self.model = create_ddp_model(model, broadcast_buffers=False, device_ids=device_ids)
        self.autocast_type = autocast_type(cfg.SOLVER.AMP.ENABLED, self.device)
        self.grad_scaler = torch.amp.GradScaler(self.device.type, enabled=self.autocast_type == torch.float16)

        self.checkpointer = InstSegCheckpointer(
            self.networks[-1],
            cfg.OUTPUT_DIR,
            metadata={"cfg": cfg.dump(), **class_information(cfg.DATASETS.TRAIN[0])},
            trainer=weakref.proxy(self),
        )
        self.results = None  # of the last evaluation
        self._bad_steps = BadSteps(model, cfg.OUTPUT_DIR)
        self._rng_states = ()  # of all processes, restored when training starts
        self.register_hooks(self.build_hooks())

    @property
    def networks(self) -> list[torch.nn.Module]:
        """The model that is trained, without wrapper, and, with SOLVER.EMA, its average. The last one is evaluated."""
        trained = getattr(self.model, "module", self.model)
        return [trained] if self.averaged is None else [trained, self.averaged.module]

    @property
    def _training_only(self) -> torch.nn.Module:
        """The parts that only training has; without any for a model from outside this package."""
        return getattr(self.networks[0], "training_only", torch.nn.ModuleDict())

    def share_buffers(self) -> None:
        """See :func:`.batch_norms.share_buffers`. Call it in all processes."""
        for network in self.networks:
            share_buffers(network)

    @classmethod
    def build_model(cls, cfg: CfgNode) -> torch.nn.Module:
        """The model of ``cfg.MODEL.META_ARCHITECTURE`` on ``cfg.MODEL.DEVICE``."""
        return build(cfg)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        """See :func:`instseg_d2.engine.solver.build_optimizer`; its ValueError becomes a ConfigError."""
        try:
            return build_optimizer(cfg, model)
        except ValueError as error:
            raise ConfigError(f"SOLVER: {error}") from error

    @classmethod
    def build_train_loader(cls, cfg: CfgNode, start_iteration: int = 0, seed: Optional[int] = None):
        """Endless batches, starting at batch ``start_iteration``; ``seed`` replaces ``cfg.SEED``."""
        return build_train_loader(cfg, start_iteration=start_iteration, seed=seed)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str):
        """Each image of the data set once."""
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_dir: str):
        """The evaluator for the data set's metadata."""
        return build_evaluator(cfg, dataset_name, output_dir)

    def build_hooks(self) -> list:
        """Timer, schedule, freezing, precise BN, checkpoints, evaluation, progress and writers, in this order."""
        cfg = self.cfg
        bn = cfg.TEST.PRECISE_BN
        registered = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.SOLVER.FREEZE_BACKBONE_ITER > 0:
            registered.append(FreezeBackbone(self.networks[0], cfg.SOLVER.FREEZE_BACKBONE_ITER))
        if cfg.SOLVER.FREEZE_NORMS_ITER >= 0:
            registered.append(FreezeNorms(cfg.SOLVER.FREEZE_NORMS_ITER))
        if bn.ENABLED and get_bn_modules(self.model):  # Detectron2's hook fails without one
            loader = self.build_train_loader(unmixed(cfg), seed=self.seed)
            evaluated = self.model if self.averaged is None else self.averaged.module
            registered.append(hooks.PreciseBN(cfg.TEST.EVAL_PERIOD, evaluated, loader, bn.NUM_ITER))
        registered.append(PeriodicCheckpoint(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD))
        if cfg.DATASETS.TEST:
            trainer = weakref.proxy(self)
            registered.append(
                EvaluationHook(
                    lambda: trainer.evaluate(),
                    cfg.TEST.EVAL_PERIOD,
                    cfg.TEST.BEST_METRIC,
                    self.checkpointer,
                    cfg.SOLVER.PATIENCE,
                )
            )
        if comm.is_main_process():
            registered += [ProgressBar(), Writers(cfg)]
        return registered

    def resume_or_load(self, resume: bool = True) -> None:
        """
        Continue the run in ``OUTPUT_DIR``, or load ``MODEL.WEIGHTS`` and start from iteration 0. A new run moves the
        results of an earlier one to ``OUTPUT_DIR/earlier``.

        Raises:
            CheckpointError: the checkpoint does not fit; see :class:`InstSegCheckpointer`.
            ConfigError, DatasetError: the run in ``OUTPUT_DIR`` has another optimiser, architecture or classes.
        """
        folder, is_main = self.cfg.OUTPUT_DIR, comm.is_main_process()
        if is_main:
            remove_unfinished(folder)
        resumed = resume and self.checkpointer.has_checkpoint()
        if resumed:
            require_same_run(self.checkpointer.read_last(), self.cfg, self.checkpointer.metadata)
        extra = self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resumed)
        if self.averaged is not None and not resumed:
            self.networks[0].load_state_dict(self.averaged.module.state_dict())
        comm.synchronize()  # all processes have read the files before they are moved
        if resumed:
            self.start_iter = extra["iteration"] + 1
            self._rng_states = extra.get("rng", ())
            if is_main:
                truncate_metrics(os.path.join(folder, "metrics.json"), self.start_iter)
            logger.info("Resuming %s after %d iterations.", folder, self.start_iter)
        else:
            start = "Nothing to resume in %s: starting a new run." if resume else "Starting a new run in %s."
            logger.info(start, folder)
            earlier = set_aside(folder) if is_main else ""
            if earlier:
                logger.info("The results of the earlier run were moved to %s.", earlier)
        if is_main:
            write_bytes(os.path.join(folder, "config.yaml"), self.cfg.dump().encode())

    def prepare(self) -> None:
        """Fit what the methods fit to the data before training, and open the stream of batches."""
        for method in methods():
            method.fit(self.model, self.cfg)
        if self.averaged is not None and self.averaged.n_averaged == 0:
            self.averaged.restart(self.networks[0])
        self.batches = iter(self.build_train_loader(self.cfg, self.start_iter * self.cfg.SOLVER.ACCUMULATE, self.seed))

    def train(self) -> None:
        """
        Train to ``SOLVER.MAX_ITER``, or until ``SOLVER.PATIENCE`` ends.

        Raises:
            FloatingPointError: a loss or gradient was not finite ten times in a row.
        """
        if self.start_iter >= self.max_iter:
            logger.info(
                "All %d iterations are done; to train longer, raise SOLVER.MAX_ITER. Evaluating the final model.",
                self.max_iter,
            )
        else:
            self.prepare()
            if len(self._rng_states) == comm.get_world_size():
                set_rng_state(self._rng_states[comm.get_rank()])
            logger.info("Training from iteration %d to %d.", self.start_iter, self.max_iter)
        self.iter = self.start_iter
        with EventStorage(self.start_iter) as self.storage:
            self.before_train()
            try:
                while self.iter < self.max_iter:  # which SOLVER.PATIENCE may lower
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    self.iter += 1
                self.iter = self.max_iter  # tells the hooks that training is complete
            except Exception as error:
                logger.error("Training stopped at iteration %d: %s", self.iter, sentence(error))
                raise
            finally:
                self.after_train()

    def run_step(self) -> None:
        """SOLVER.ACCUMULATE batches: forward and backward for each, then one update with their mean gradient."""
        self._bad_steps.before_step()
        self.optimizer.zero_grad()
        count, data_time, images, parts = self.cfg.SOLVER.ACCUMULATE, 0.0, [], []
        for number in range(1, count + 1):
            start = time.perf_counter()
            batch = next(self.batches)
            data_time += time.perf_counter() - start
            images += batch
            parts.append(self.add_gradient(batch, count, last=number == count))
        losses = {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}
        self.after_backward()
        values = self._mean_over_processes(self._watched(losses))
        if not all(map(math.isfinite, values.values())):
            self._bad_steps.skip(self.iter, values, losses, images)
            return
        self._bad_steps.good()
        total = sum(values[name] for name in losses)
        self.storage.put_scalars(total_loss=total, data_time=data_time, **values)
        self.grad_scaler.unscale_(self.optimizer)  # clipping needs the unscaled gradients
        self.grad_scaler.step(self.optimizer)
        if self.averaged is None:
            self.grad_scaler.update()
            return
        scale = self.grad_scaler.get_scale()
        self.grad_scaler.update()
        if self.grad_scaler.get_scale() >= scale:  # otherwise gradients overflowed, and the scaler skipped the step
            self.averaged.update_parameters(self.networks[0])

    def add_gradient(self, batch: list, count: int, last: bool) -> dict:
        """Add a batch's gradient, divided by ``count``; return its losses. Processes exchange gradients at the last."""
        alone = not last and comm.get_world_size() > 1
        with self.model.no_sync() if alone else contextlib.nullcontext():
            with torch.autocast(self.device.type, dtype=self.autocast_type, enabled=self.autocast_type is not None):
                losses = self.model(batch)
                total = sum(losses.values())
            self.grad_scaler.scale(total / count if count > 1 else total).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _watched(self, losses: dict) -> dict:
        """The losses and, unless a gradient scaler checks the gradients, their norm."""
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if self.grad_scaler.is_enabled() or not gradients:
            return losses
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return {**losses, GRADIENT_NORM: norm}

    @staticmethod
    def _mean_over_processes(scalars: dict) -> dict[str, float]:
        """Average the scalars, with a single copy from the device."""
        names = sorted(scalars, key=lambda name: (name == GRADIENT_NORM, name))
        mean = torch.stack([scalars[name].detach().float() for name in names])
        if comm.get_world_size() > 1:
            dist.all_reduce(mean)
            mean /= comm.get_world_size()
        return dict(zip(names, mean.tolist()))

    def evaluate(self) -> dict:
        """Evaluate the current model on ``DATASETS.TEST``. Call it in all processes."""
        self.share_buffers()
        self.results = self.test(self.cfg, self.networks[-1])
        return self.results

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module) -> dict:
        """
        Evaluate a model on each data set of ``DATASETS.TEST``. Call it in all processes.

        Returns:
            {task: {metric: value}} for one data set, {data set: {task: ...}} for several; empty on processes other
            than the main one, which also writes the results to ``OUTPUT_DIR/inference/results.json``.
        """
        folder = os.path.join(cfg.OUTPUT_DIR, "inference")
        several = len(cfg.DATASETS.TEST) > 1
        fast = model_for_test(cfg, getattr(model, "module", model))
        results = OrderedDict()
        for name in cfg.DATASETS.TEST:
            logger.info("Evaluating on %s.", name)
            into = os.path.join(folder, name) if several else folder
            evaluator = cls.build_evaluator(cfg, name, into)
            report = build_report(cfg, name, into)
            if report is not None:
                evaluator = DatasetEvaluators([evaluator, report])
            results[name] = evaluate(fast, cls.build_test_loader(cfg, name), evaluator, name)
            if comm.is_main_process():
                print_csv_format(results[name])
        if not several:
            results = next(iter(results.values()), {})
        if comm.is_main_process():
            write_results(os.path.join(folder, "results.json"), results)
        return results

    def state_dict(self) -> dict:
        """
        Iteration, hooks, optimiser, gradient scaler, data seed and the parts that only training has. With SOLVER.EMA
        also the weights that are trained, because the checkpoint's model is their average.
        """
        state = super().state_dict()
        state["optimizer"] = self.optimizer.state_dict()
        state["grad_scaler"] = self.grad_scaler.state_dict()
        state["seed"] = self.seed
        state["training_only"] = self._training_only.state_dict()
        if self.averaged is not None:
            state["trained_model"] = self.networks[0].state_dict()
            state["n_averaged"] = int(self.averaged.n_averaged)
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Restore :meth:`state_dict`."""
        super().load_state_dict(state_dict)
        own = type(self.optimizer).__name__
        if _kind(state_dict["optimizer"]["param_groups"]) != _kind(self.optimizer.param_groups):
            raise ConfigError(
                f"the run in {self.cfg.OUTPUT_DIR} used another SOLVER.OPTIMIZER than {own}: resume with its "
                "config.yaml, or start a new run in another OUTPUT_DIR."
            )
        parts, own = state_dict.get("training_only", {}), self._training_only.state_dict()
        if {name: x.shape for name, x in parts.items()} != {name: x.shape for name, x in own.items()}:
            raise ConfigError(
                f"the run in {self.cfg.OUTPUT_DIR} had another MODEL.AUXILIARY: resume with its config.yaml, or start "
                "a new run from its weights, with MODEL.WEIGHTS and another OUTPUT_DIR."
            )
        before, now = state_dict["optimizer"]["param_groups"], self.optimizer.param_groups
        if [len(group["params"]) for group in before] != [len(group["params"]) for group in now]:
            raise ConfigError(
                f"the run in {self.cfg.OUTPUT_DIR} grouped its parameters otherwise, by other SOLVER keys or in an "
                "earlier version: resume with its config.yaml, or start a new run from its weights, with MODEL.WEIGHTS "
                "and another OUTPUT_DIR."
            )
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self.seed = state_dict["seed"]
        if "trained_model" in state_dict:
            self.networks[0].load_state_dict(state_dict["trained_model"])
        elif self.averaged is not None:  # SOLVER.EMA was off: its average starts now
            self.networks[0].load_state_dict(self.averaged.module.state_dict())
        self._training_only.load_state_dict(parts)
        if self.averaged is not None:
            self.averaged.n_averaged.fill_(state_dict.get("n_averaged", 0))
        if state_dict["grad_scaler"]:
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
