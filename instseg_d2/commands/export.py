"""Export a trained model to ONNX, OpenVINO or PyTorch's .pt2, then check the file against PyTorch on real images."""

import argparse
import os
import sys

from ..arguments import add_config_file

MAX_CALIBRATION = 300  # images
EPILOG = "Example: %(prog)s --weights model_best.pth --format onnx --output x.onnx --images photos/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", default="", help="checkpoint; default: random weights")
    add_config_file(parser, "YAML file or recipe; default: the config in the checkpoint")
    parser.add_argument("--format", required=True, choices=("onnx", "openvino", "pt2"))
    parser.add_argument(
        "--output",
        type=os.path.expanduser,
        required=True,
        help="file to write (.onnx, .xml or .pt2); FILE.json describes it",
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="network input (default: the config's test size)"
    )
    parser.add_argument("--batch", type=int, default=1, help="batch size (default %(default)s)")
    parser.add_argument("--dynamic", action="store_true", help="leave batch, height and width free")
    parser.add_argument(
        "--masks",
        choices=("full", "crops", "canvas"),
        default="full",
        help="full size, or compact: crops of the boxes or maps of the canvas, as the method has them (default: full)",
    )
    parser.add_argument("--float", action="store_true", help="images as float32 instead of uint8")
    parser.add_argument(
        "--images",
        nargs="+",
        help="images, folders, globs or data sets to check on (default: the test set, with --int8 the training set)",
    )
    parser.add_argument("--max-images", type=int, help="check on at most this many (default: 4, with --int8 50)")
    parser.add_argument(
        "--int8",
        action="store_true",
        help="8-bit layers, calibrated on most of the images, at most 300; every fifth checks the file instead",
    )
    parser.add_argument("--data", metavar="NAME", help="with --int8: check by the AP on this data set")
    parser.add_argument("--val-json", metavar="FILE", help="with --int8: check by the AP on these COCO annotations")
    parser.add_argument("--val-images", metavar="DIR", help="folder of the images of --val-json")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config overrides KEY VALUE ...")


def main(args: argparse.Namespace) -> int:
    """Exit status: 0 if the file was written, 1 if its results differ from PyTorch's."""
    import torch

    from ..apps.inputs import find_inputs
    from ..config import load_config
    from ..engine.log import setup_logging
    from ..errors import ConfigError
    from ..export import FORMATS, ParityError, export_verified
    from ..inference.cpu import tune_cpu
    from ..inference.predictor import Predictor

    setup_logging()
    tune_cpu()
    if not args.output.endswith(FORMATS[args.format]):
        raise ConfigError(f"--output {args.output} must end in {FORMATS[args.format]}")
    if args.dynamic and (args.size or args.batch != 1):
        raise ConfigError("--dynamic leaves batch and size free: omit --batch and --size")
    if args.max_images is not None and args.max_images < 1:
        raise ConfigError(f"--max-images must be at least 1; got {args.max_images}")
    data = labelled_data(args)
    files = find_inputs(args.images) if args.images else []  # before the model, to report a wrong path at once
    opts = [*args.opts, "MODEL.DEVICE", "cpu"]
    if args.weights:
        predictor = Predictor.from_checkpoint(args.weights, args.config_file, opts)
    else:
        predictor = Predictor(load_config(args.config_file, opts), "")
    try:
        files = files or find_inputs(predictor.cfg.DATASETS.TRAIN if args.int8 else predictor.cfg.DATASETS.TEST)
    except FileNotFoundError as error:
        raise ConfigError(f"give images (--images), on which the file is checked: {error}") from error
    if not files:
        raise ConfigError("give images (--images), on which the file is checked: the config names no data set")
    calibration: list[str] = []
    if args.int8:
        calibration, files = split_images(files, labelled=bool(data))
    try:
        export_verified(
            predictor,
            args.output,
            args.format,
            files[: args.max_images or (50 if args.int8 else 4)],
            size=args.size,
            batch=args.batch,
            dynamic=args.dynamic,
            dtype=torch.float32 if args.float else torch.uint8,
            masks=args.masks,
            calibration=calibration,
            data=data,
        )
        return 0
    except ParityError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1


def labelled_data(args: argparse.Namespace) -> str:
    """The registered data set that an 8-bit file is checked on; empty: none is given."""
    from ..data.coco import register_coco, require_registered
    from ..errors import ConfigError

    if bool(args.val_json) != bool(args.val_images):
        raise ConfigError("--val-json and --val-images need each other: give both.")
    if args.data and args.val_json:
        raise ConfigError("give --data or --val-json, not both.")
    if not args.data and not args.val_json:
        return ""
    if not args.int8:
        raise ConfigError(
            "--data and --val-json need --int8: other files must find the same as PyTorch in every image."
        )
    if args.val_json:
        register_coco("custom_val", args.val_json, args.val_images)
        return "custom_val"
    require_registered(args.data)
    return args.data


def split_images(files: list[str], labelled: bool) -> tuple[list[str], list[str]]:
    """Images for calibration, and others for the check, which needs none if there are labelled ones."""
    from ..errors import ConfigError
    from ..export import MIN_CALIBRATION

    check = [] if labelled else files[::5]
    calibration = [file for index, file in enumerate(files) if labelled or index % 5]
    if len(calibration) < MIN_CALIBRATION:
        kept = "" if labelled else ", because every fifth image is kept for the check"
        raise ConfigError(
            f"--int8 needs at least {MIN_CALIBRATION} images for calibration, better 100; of {len(files)} there are "
            f"{len(calibration)}{kept}."
        )
    step = max(1, len(calibration) / MAX_CALIBRATION)
    chosen = (calibration[int(index * step)] for index in range(min(len(calibration), MAX_CALIBRATION)))
    return list(chosen), check
