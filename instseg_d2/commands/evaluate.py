"""Evaluate a trained model on annotated images: the metrics of the data set as a table and in results.json."""

import argparse
import os

from ..arguments import add_config_file, add_processes
from .train import evaluate

EPILOG = """examples:
  %(prog)s --weights model_best.pth --json val.json --images images/
  %(prog)s --weights model_best.pth --data coco_2017_val --num-gpus 8
  %(prog)s --predictions out/ --json val.json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--weights", help="checkpoint to evaluate")
    what.add_argument(
        "--predictions",
        metavar="DIR",
        help="output folder of `instseg predict`, made with --score-threshold 0, instead",
    )
    add_config_file(parser, "YAML file or recipe; default: the config in the checkpoint")
    parser.add_argument(
        "--data", nargs="+", metavar="NAME", help="registered data sets (default: the config's test sets)"
    )
    parser.add_argument("--json", metavar="FILE", help="your own COCO annotations instead")
    parser.add_argument("--images", metavar="DIR", help="folder of their images")
    parser.add_argument(
        "--output", type=os.path.expanduser, default="output/evaluation", help="folder (default %(default)s)"
    )
    parser.add_argument("--no-report", dest="report", action="store_false", help="do not write report.html")
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
    cfg.TEST.REPORT = args.report
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


def _evaluate_predictions(args: argparse.Namespace) -> None:
    from ..apps.results import read_predictions
    from ..data import register_coco
    from ..engine.log import setup_logging
    from ..errors import ConfigError
    from ..evaluation import evaluate_predictions

    setup_logging()
    if args.config_file or args.opts:
        raise ConfigError("--predictions needs no model, so --config-file and KEY VALUE have no effect: omit them.")
    if args.json:
        register_coco("custom_val", args.json, args.images or ".")
    elif not args.data or len(args.data) > 1:
        raise ConfigError("name the annotations of the predictions: --json FILE, or one --data NAME.")
    name = "custom_val" if args.json else args.data[0]
    evaluate_predictions(name, read_predictions(os.path.expanduser(args.predictions)), args.output)


def main(args: argparse.Namespace) -> None:
    """Start the processes of the job; predictions need none."""
    from ..engine import launch
    from ..errors import ConfigError

    if args.data and args.json:
        raise ConfigError("--data and --json are two ways to name the images: give one of them.")
    if args.predictions:
        _evaluate_predictions(args)
        return
    if bool(args.json) != bool(args.images):
        raise ConfigError(f"--{'json' if args.json else 'images'} needs --{'images' if args.json else 'json'} as well.")
    args.eval_only, args.resume = True, False
    args.train_json, args.train_images, args.val_json, args.val_images = None, None, args.json, args.images
    launch(work, args)
