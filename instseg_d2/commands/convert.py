"""Convert labels between COCO, YOLO, LabelMe, VIA, Pascal VOC masks and Label Studio."""

import argparse
import os
import sys

EPILOG = "Example: %(prog)s labelme_folder/ --to coco --output converted/"
FORMATS = ("coco", "yolo", "labelme", "via", "voc")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", type=os.path.expanduser, help="label file or folder")
    parser.add_argument("--to", required=True, choices=[*FORMATS, "label-studio"], help="format to write")
    parser.add_argument("--from", dest="source", choices=FORMATS, help="format of the input; default: by its content")
    parser.add_argument(
        "--images", type=os.path.expanduser, help="folder of the images; default: where the format has them"
    )
    parser.add_argument(
        "--val",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="with --to coco: put this share of the images, drawn at random, the same of each class, into "
        "val.json, the others into train.json",
    )
    parser.add_argument("--output", required=True, type=os.path.expanduser, help="empty or new folder to write to")


def main(args: argparse.Namespace) -> int:
    """Exit status: 0."""
    from ..apps.convert import convert

    options = {"images": args.images, "source_format": args.source, "val_share": args.val}
    for line in convert(args.input, args.to, args.output, **options):
        sys.stdout.write(f"{line}\n")
    return 0
