"""Arguments of the commands that other rooms need too. Imports no PyTorch, so that help comes at once."""

import argparse
import math

__all__ = ["READINGS", "add_cluster", "add_config_file", "add_processes", "add_recipe", "add_training"]

# What coordinates may mean instead, by the name that --assume accepts.
READINGS = {
    "swapped": "y before x",
    "normalised": "fractions of the image's sides",
    "percent": "percent of the image's sides",
    "xyxy": "[x0, y0, x1, y1] (XYXY)",
    "centre": "[centre x, centre y, width, height]",
}


def add_config_file(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("--config-file", "--config", default="", metavar="FILE", help=help)


def add_cluster(parser: argparse.ArgumentParser) -> None:
    """What `predict` on a Ray cluster reads."""
    group = parser.add_argument_group("on a cluster")
    group.add_argument(
        "--engine",
        choices=["local", "ray"],
        default="local",
        help="ray: spread the images over a Ray cluster and write Parquet into --output",
    )
    group.add_argument("--address", help="of the Ray cluster; auto: the one of this machine; default: start one here")
    group.add_argument(
        "--column", metavar="NAME", help="if --input is Parquet: its column with image files, or their addresses"
    )
    group.add_argument("--part-size", type=int, default=200, metavar="N", help="images a part (default %(default)s)")
    group.add_argument("--coco", metavar="FILE", help="at the end also write everything as COCO results")


def add_processes(parser: argparse.ArgumentParser) -> None:
    """What `engine.launch` reads."""
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs per machine; 0: CPU")
    parser.add_argument("--num-processes", type=int, default=1, help="CPU processes per machine, with --num-gpus 0")
    parser.add_argument("--num-machines", type=int, default=1, help="machines of the job")
    parser.add_argument("--machine-rank", type=int, default=0, help="index of this machine, from 0")
    parser.add_argument("--dist-url", default="auto", help="tcp://HOST:PORT of machine 0, for several machines")


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0 < minutes < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of minutes above 0")
    return minutes


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return count


def _iterations(text: str) -> int:
    iterations = int(text)
    if iterations < 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of iterations")
    return iterations


def _add_schedule(parser: argparse.ArgumentParser, method: str) -> None:
    parser.add_argument("--method", metavar="NAME", help=method)
    parser.add_argument(
        "--minutes",
        type=_minutes,
        metavar="M",
        help="stretch or cut the schedule so that training takes this long here",
    )


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--train-json", metavar="FILE", help="COCO annotations to train on")
    parser.add_argument("--train-images", metavar="DIR", help="folder of the training images")
    parser.add_argument("--val-json", metavar="FILE", help="COCO annotations to evaluate on")
    parser.add_argument("--val-images", metavar="DIR", help="folder of the evaluation images")
    add_processes(parser)
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of config keys")


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """What `engine.auto.make_plan` reads."""
    add_config_file(parser, "recipe to start from instead of the method's own")
    _add_schedule(parser, "the method; `instseg zoo` lists them")
    _add_data(parser)
    parser.set_defaults(resume=False, eval_only=False)


def add_training(parser: argparse.ArgumentParser) -> None:
    """What `engine.setup` and `engine.launch` read."""
    add_config_file(parser, "YAML file, or a recipe, such as BlendMask/R_50_1x")
    parser.add_argument("--resume", action="store_true", help="continue the run in OUTPUT_DIR, if there is one")
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS instead of training")
    parser.add_argument(
        "--auto", action="store_true", help="make a recipe for the data and this machine, see `instseg recipe`"
    )
    _add_schedule(parser, "with --auto: the method; `instseg zoo` lists them")
    parser.add_argument(
        "--freeze-backbone",
        type=_iterations,
        metavar="N",
        help="keep the backbone as it was loaded for the first N iterations",
    )
    parser.add_argument(
        "--augmented",
        type=_count,
        metavar="N",
        help="instead of training, draw the first N training samples in OUTPUT_DIR/augmented.jpg",
    )
    _add_data(parser)
