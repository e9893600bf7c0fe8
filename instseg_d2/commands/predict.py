"""Detect instances in images or a video: pictures, results.json (COCO results format) and index.html."""

import argparse
import os

from ..arguments import add_cluster, add_config_file

# Arguments, with their defaults, that have no meaning on a cluster.
LOCAL = {
    "explain": False,
    "format": "coco",
    "polygons": False,
    "no_pictures": False,
    "shard": (1, 1),
    "max_images": None,
    "track": False,
    "every": 1,
}
EPILOG = "Example: %(prog)s --weights model_best.pth --input photos/ --output output/demo --explain"


def _shard(text: str) -> tuple[int, int]:
    first, _, count = text.partition("/")
    try:
        return int(first), int(count)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"a part is written I/N, such as 1/4; got {text}") from error


def add_model(parser: argparse.ArgumentParser) -> None:
    """What `open_predictor` reads, except ``opts``."""
    model = parser.add_mutually_exclusive_group(required=True)
    model.add_argument("--weights", help="checkpoint to run")
    model.add_argument("--model", type=os.path.expanduser, help="exported model to run instead: .onnx, .xml or .pt2")
    parser.add_argument("--trust", action="store_true", help="load a .pt2 file, which may run any code it contains")
    add_config_file(parser, "YAML file or recipe; default: the config in the checkpoint")


def open_predictor(args: argparse.Namespace, parallel: int):
    """The predictor of the checkpoint or exported model; ``parallel``: number of images at a time."""
    from ..errors import ConfigError
    from ..export import ExportedPredictor
    from ..inference.predictor import Predictor

    if not args.model:
        return Predictor.from_checkpoint(args.weights, args.config_file, args.opts)
    if args.config_file or args.opts:
        raise ConfigError("--model takes no config, since an exported model is fixed: omit --config-file and KEY VALUE")
    return ExportedPredictor(args.model, args.trust, parallel)


def add_shared_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `explain` too."""
    add_model(parser)
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        help="images, folders, globs, data sets, or one video: file, number of a camera, rtsp or http address",
    )
    parser.add_argument("--output", required=True, help="folder to write to")
    parser.add_argument(
        "--score-threshold",
        type=float,
        default=0.5,
        help="drop objects that score lower (default %(default)s); the config's own threshold applies first",
    )
    parser.add_argument(
        "--format",
        default="coco",
        choices=["coco", "labelme", "yolo", "label-studio", "png"],
        help="also write labels for this program, or maps of the objects (png), into a folder of this name in --output",
    )
    parser.add_argument("--polygons", action="store_true", help="give masks in results.json as polygons, not as RLE")
    parser.add_argument(
        "--batch", type=int, default=1, metavar="N", help="images at a time: faster, same results, more memory"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run in --output: only images not done yet")
    parser.add_argument(
        "--shard", type=_shard, default=(1, 1), metavar="I/N", help="only the I-th of N parts, into a subfolder"
    )
    parser.add_argument("--max-images", type=int, help="stop after this many images or frames; cameras: or Ctrl-C")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides KEY VALUE ..., e.g. MODEL.DEVICE cpu")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_shared_arguments(parser)
    add_own_arguments(parser)


def add_own_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that `explain` does not have."""
    parser.add_argument("--explain", action="store_true", help="also write what the network sees in every image")
    parser.add_argument("--no-pictures", action="store_true", help="write only results and labels")
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="of a video, only each N-th frame: the others are left out, and it plays as fast as before",
    )
    parser.add_argument(
        "--track",
        action="store_true",
        help="follow the objects of a video (ByteTrack): track_id in the results, colours and numbers in the pictures",
    )
    parser.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="for large images: cut them into tiles of N x N of their pixels, which the network sees as images of "
        "their own (resized to its test size), and join objects over the seams; each tile has the limits of an image. "
        "Default: as the model was tested (TEST.TILE); 0: whole images",
    )
    parser.add_argument(
        "--overlap",
        type=float,
        metavar="F",
        help="least part of a tile that it shares with the next one, 0 to 0.75 (default: as the model was tested, or "
        "0.2): best more than most objects take; with 0, objects over a seam stay in pieces",
    )
    add_cluster(parser)


def _run_on_ray(args: argparse.Namespace) -> int:
    """Exit status: 0 if at least one image was processed, 1 if none."""
    from ..errors import ConfigError
    from ..runtime.sessions import needed

    for name, default in LOCAL.items():
        if getattr(args, name) != default:
            raise ConfigError(f"--{name.replace('_', '-')} works only without --engine ray")
    needed("predictions on a cluster", "ray", "ray", "pyarrow")
    from ..apps.batch_predictor import BatchPredictor
    from ..apps.parquet import write_coco
    from ..apps.ray_engine import predict_on_ray

    predictor = BatchPredictor(
        os.path.abspath(os.path.expanduser(args.model or args.weights)),  # workers run in folders of their own
        batch_size=args.batch,
        score_threshold=args.score_threshold,
        config_file=os.path.abspath(args.config_file) if os.path.isfile(args.config_file) else args.config_file,
        opts=args.opts,
        trust=args.trust,
        tile=args.tile,
        overlap=args.overlap,
    )
    if args.coco:
        args.coco = os.path.abspath(os.path.expanduser(args.coco))
        if not os.path.isdir(os.path.dirname(args.coco)) or os.path.isdir(args.coco):
            raise ConfigError(f"--coco is {args.coco}; it must be a file in an existing folder")
    output = args.output if "://" in args.output else os.path.abspath(os.path.expanduser(args.output))
    worked = predict_on_ray(
        predictor,
        args.input,
        output,
        address=args.address,
        column=args.column,
        part_size=args.part_size,
        resume=args.resume,
    )
    if args.coco:
        write_coco(output, args.coco)
    return int(not worked)


def main(args: argparse.Namespace) -> int:
    """Exit status: 0 if at least one image was processed, 1 if none."""
    from ..apps.inputs import find_inputs
    from ..apps.predict import run_demo
    from ..engine.log import setup_logging
    from ..errors import ConfigError
    from ..inference.cpu import tune_cpu
    from ..inference.tiles import check_tiles, in_tiles

    setup_logging()
    if args.engine == "ray":
        return _run_on_ray(args)
    for name in ("address", "column", "coco"):
        if getattr(args, name) is not None:
            raise ConfigError(f"--{name} works only with --engine ray")
    tune_cpu()
    files = find_inputs(args.input, live=True)  # before the model is loaded, to report a wrong path at once
    check_tiles(args.tile or None, args.overlap)
    predictor = in_tiles(open_predictor(args, args.batch), args.tile, args.overlap, args.batch)
    worked = run_demo(
        predictor,
        files,
        args.output,
        score_threshold=args.score_threshold,
        max_images=args.max_images,
        batch=args.batch,
        track=args.track,
        every=args.every,
        explain=args.explain,
        label_format=args.format,
        polygons=args.polygons,
        pictures=not args.no_pictures,
        resume=args.resume,
        shard=args.shard,
    )
    return int(not worked)
