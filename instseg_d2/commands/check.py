"""Find missing, corrupt and repeated images and wrong ids, boxes, masks, areas and units."""

import argparse
import os

from ..arguments import READINGS

EPILOG = "Exit status: 0 no faults, 1 faults, 2 a file that cannot be read or written."


class _Pairs(argparse.Action):
    """Files and folders in turn."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        if len(values) % 2:
            parser.error("give an image folder after every annotation file: JSON IMAGES [JSON IMAGES ...]")
        namespace.files = values


def add_arguments(parser: argparse.ArgumentParser) -> None:
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in READINGS.items())
    parser.add_argument(
        "files",
        type=os.path.expanduser,
        action=_Pairs,
        nargs="+",
        metavar="JSON IMAGES",
        help="annotation file and image folder; more pairs: other splits",
    )
    parser.add_argument("--fix", action="store_true", help="write a clean copy NAME.clean.json beside each file")
    parser.add_argument(
        "--assume",
        nargs="+",
        default=[],
        choices=[*READINGS, "nothing"],
        metavar="READING",
        help=f"what the coordinates mean, for --fix to convert them ({meanings}; nothing: keep them)",
    )


def main(args: argparse.Namespace) -> int:
    """Exit status: see EPILOG."""
    from ..check_data import check

    return check(dict(zip(args.files[::2], args.files[1::2])), fix=args.fix, assume=args.assume)
