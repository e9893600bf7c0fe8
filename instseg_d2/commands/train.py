"""Train or evaluate any method of instseg_d2."""

import argparse
import time

from ..arguments import add_training
from ..errors import ConfigError

EPILOG = """examples:
  %(prog)s --config-file BlendMask/R_50_1x --num-gpus 8
  %(prog)s --config-file FILE --train-json A --train-images DIR --val-json B --val-images DIR
  %(prog)s --config-file quick/blendmask_shapes --minutes 15 OUTPUT_DIR output/short
  %(prog)s --auto --method NAME --minutes 15 --train-json A --train-images DIR
  %(prog)s --config-file FILE --eval-only MODEL.WEIGHTS output/model_final.pth
  %(prog)s --config-file FILE --num-gpus 0 --num-processes 4 SOLVER.MAX_ITER 1000

Also runs under torchrun and Slurm's srun. INSTSEG_DEBUG=1 shows the traceback of an error."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_training(parser)
    parser.set_defaults(begun=time.perf_counter())  # for --minutes, before PyTorch is imported


def evaluate(cfg) -> None:
    """Evaluate MODEL.WEIGHTS of a config that `engine.setup` has made."""
    from ..checkpoint import InstSegCheckpointer
    from ..engine import Trainer

    model = Trainer.build_model(cfg)
    InstSegCheckpointer(model, for_test=True).load(cfg.MODEL.WEIGHTS)
    Trainer.test(cfg, model)


def work(args: argparse.Namespace) -> None:
    """Train, or evaluate with --eval-only; runs in every process of the job."""
    from .. import register
    from ..engine import Trainer, fit_to_minutes, kept_schedule, setup
    from ..engine.auto import auto_setup

    for name in ("minutes", "auto", "augmented"):
        if getattr(args, name) and args.eval_only:
            raise ConfigError(f"--{name} is about training: leave it out with --eval-only.")
    if args.method and not args.auto:
        raise ConfigError("--method goes with --auto; without it, --config-file names a recipe.")
    register()
    cfg = auto_setup(args, args.begun) if args.auto else setup(args)
    if args.eval_only:
        evaluate(cfg)
        return
    if args.augmented:
        from detectron2.utils import comm

        from ..apps.augmented import draw_augmented

        if comm.is_main_process():
            print(draw_augmented(cfg, args.augmented))
        return
    if args.minutes and not args.auto:
        cfg = fit_to_minutes(cfg, args.minutes, args.begun, args.resume, kept_schedule(args))
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def main(args: argparse.Namespace) -> None:
    """Start the processes of the job."""
    from ..engine import launch

    launch(work, args)
