"""Compare models on the same data: one table (Markdown and JSON) and one page of pictures side by side."""

import argparse
import os

EPILOG = "Example: %(prog)s --configs quick/blendmask_shapes quick/istr_shapes --data shapes --iterations 2000"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--configs", nargs="+", required=True, metavar="FILE", help="YAML files, recipes, or names in Detectron2's zoo"
    )
    parser.add_argument("--data", required=True, help="NAME of the data sets NAME_train and NAME_val, or a test set")
    models = parser.add_mutually_exclusive_group()
    models.add_argument("--weights", nargs="+", metavar="FILE", help="trained checkpoints, one for each config")
    models.add_argument(
        "--train", action="store_true", help="train every model, on the same number of images (default)"
    )
    parser.add_argument("--iterations", type=int, help="iterations of the first config (default: SOLVER.MAX_ITER)")
    parser.add_argument("--resume", action="store_true", help="continue the runs in the output folder")
    parser.add_argument(
        "--output", type=os.path.expanduser, default="output/comparison", help="folder (default %(default)s)"
    )
    parser.add_argument("--images", type=int, default=6, help="images to draw (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="latency measurements (default %(default)s)")
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, help="draw objects from this score on (default %(default)s)"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides KEY VALUE ... for every model")


def main(args: argparse.Namespace) -> None:
    from ..apps.compare import compare, contender_names, find_data, join
    from ..config import check_config, load_config
    from ..engine.log import setup_logging
    from ..errors import ConfigError

    if args.weights and len(args.weights) != len(args.configs):
        raise ConfigError(f"--weights needs one file per config; got {len(args.weights)} for {len(args.configs)}")
    if args.images < 1 or args.repeats < 1 or (args.iterations is not None and args.iterations < 1):
        raise ConfigError("--images, --repeats and --iterations must be at least 1")
    data = find_data(args.data)
    names = contender_names(args.configs)
    configs = [load_config(file, args.opts) for file in args.configs]
    for cfg in configs:  # find mistakes before hours of training
        check_config(cfg)
    images = (args.iterations or configs[0].SOLVER.MAX_ITER) * configs[0].SOLVER.IMS_PER_BATCH
    contenders = [
        join(
            name,
            config,
            data,
            os.path.join(args.output, name),
            weights=weights,
            images=images,
            resume=args.resume,
            opts=args.opts,
        )
        for name, config, weights in zip(names, args.configs, args.weights or [None] * len(names))
    ]
    setup_logging(args.output)
    compare(
        contenders,
        data[1],
        args.output,
        num_images=args.images,
        repeats=args.repeats,
        score_threshold=args.score_threshold,
    )
