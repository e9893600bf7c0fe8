"""Evaluate a trained model on annotated images: the metrics of the data set as a table and in results.json."""

import argparse
import os

from ..arguments import add_config_file, add_processes
from .train import evaluate

EPILOG = """examples:
  %(prog)s --weights model_best.pth --json val.json --images images/
  %(prog)s --weights model_best.pth --data coco_2017_val --num-gpus 8"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", required=True, help="checkpoint to evaluate")
    add_config_file(parser, "YAML file or recipe; default: the config in the checkpoint")
    parser.add_argument(
        "--data", nargs="+", metavar="NAME", help="registered data sets (default: the config's test sets)"
    )
    parser.add_argument("--json", metavar="FILE", help="your own COCO annotations instead")
    parser.add_argument("--images", metavar="DIR", help="folder of their images")
    parser.add_argument(
        "--output", type=os.path.expanduser, default="output/evaluation", help="folder (default %(default)s)"
    )
    add_processes(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of config keys")


def work(args: argparse.Namespace) -> None:
    """Evaluate, in every process of the job."""
    from detectron2.data import DatasetCatalog

    from .. import register
    from ..engine import setup
    from ..errors import ConfigError
    from ..inference.predictor import checkpoint_config

    register()
    cfg = checkpoint_config(args.weights, args.config_file, args.opts)
    cfg.MODEL.WEIGHTS, cfg.OUTPUT_DIR = os.path.expanduser(args.weights), args.output
    if "TIMM" in cfg.MODEL:
        cfg.MODEL.TIMM.PRETRAINED = False  # the checkpoint has the backbone
    if args.data:
        cfg.DATASETS.TEST = tuple(args.data)
    elif not args.json and not (cfg.DATASETS.TEST and set(cfg.DATASETS.TEST) <= set(DatasetCatalog)):
        unknown = f" (the test set of its config, {', '.join(cfg.DATASETS.TEST)}, is not known here)"
        raise ConfigError(
            f"name the images to evaluate {args.weights} on: --json and --images, or --data"
            f"{unknown if cfg.DATASETS.TEST else ''}."
        )
    evaluate(setup(args, cfg))


def main(args: argparse.Namespace) -> None:
    """Start the processes of the job."""
    from ..engine import launch
    from ..errors import ConfigError

    if bool(args.json) != bool(args.images):
        raise ConfigError(f"--{'json' if args.json else 'images'} needs --{'images' if args.json else 'json'} as well.")
    if args.data and args.json:
        raise ConfigError("--data and --json are two ways to name the images: give one of them.")
    args.eval_only, args.resume = True, False
    args.train_json, args.train_images, args.val_json, args.val_images = None, None, args.json, args.images
    launch(work, args)
