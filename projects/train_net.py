"""
Train or evaluate any method of instseg_d2.

    python projects/train_net.py --config-file configs/BlendMask/R_50_1x.yaml --num-gpus 8
    python projects/train_net.py --config-file FILE --train-json A --train-images DIR --val-json B --val-images DIR
    python projects/train_net.py --config-file FILE --eval-only MODEL.WEIGHTS output/model_final.pth
    python projects/train_net.py --config-file FILE --num-gpus 0 --num-processes 4 SOLVER.MAX_ITER 1000

Also runs under torchrun and Slurm's srun. INSTSEG_DEBUG=1 shows the traceback of an error.
"""

import argparse
import signal
import sys


def main(args: argparse.Namespace) -> None:
    """Train, or evaluate with --eval-only; runs in every process of the job."""
    from instseg_d2.checkpoint import InstSegCheckpointer
    from instseg_d2.engine import Trainer, setup

    cfg = setup(args)
    if args.eval_only:
        model = Trainer.build_model(cfg)
        InstSegCheckpointer(model, for_test=True).load(cfg.MODEL.WEIGHTS)
        Trainer.test(cfg, model)
        return
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


if __name__ == "__main__":
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # until run_script handles it: Ctrl-C during imports prints no traceback
    from instseg_d2.console import run_script
    from instseg_d2.engine import argument_parser, launch

    parser = argument_parser(__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    sys.exit(run_script(launch, main, parser.parse_args()))
