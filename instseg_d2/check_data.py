"""``python -m instseg_d2.check_data``: what is wrong with COCO instances files and their images, and clean copies."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Optional

from tabulate import tabulate

from .console import run_script
from .data.coco_report import NOTE, class_differences, examine, shared_pictures
from .errors import DatasetError
from .files import write_bytes

HEADERS = ("what", "how many", "first", "in a clean copy")


def parse(arguments: Optional[Sequence[str]] = None):
    parser = argparse.ArgumentParser(
        prog="python -m instseg_d2.check_data",
        description="Find missing, corrupt and repeated images, wrong ids, boxes, masks and areas of COCO files.",
        epilog="Exit status: 0 nothing to mend, 1 faults, 2 a file that cannot be read at all or written.",
    )
    parser.add_argument(
        "files", nargs="+", metavar="JSON IMAGES", help="annotation file and image folder; more pairs: other splits"
    )
    parser.add_argument("--fix", action="store_true", help="write a clean copy NAME.clean.json beside each file")
    args = parser.parse_args(arguments)
    if len(args.files) % 2:
        parser.error("give an image folder after every annotation file: JSON IMAGES [JSON IMAGES ...]")
    return args


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Print one table a file and one of what the files share; the exit status."""
    args = parse(arguments)
    pairs = dict(zip(args.files[::2], args.files[1::2]))
    try:
        reports = {file: examine(file, images, progress=sys.stderr.isatty()) for file, images in pairs.items()}
    except DatasetError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    between = [*class_differences(reports), *shared_pictures(reports)]
    tables = {f"{file}: {report.summary}": report.findings for file, report in reports.items()}
    if len(reports) > 1:
        tables[f"between the {len(reports)} files"] = between
    for title, findings in tables.items():
        rows = [
            (*row[:2], row.first if len(row.first) <= 60 else row.first[:57] + "...", row.remedy) for row in findings
        ]
        sys.stdout.write(f"{title}\n{tabulate(rows, HEADERS) if rows else 'nothing found'}\n\n")
    if args.fix:
        for file, report in reports.items():
            path = f"{os.path.splitext(file)[0]}.clean.json"
            try:
                write_bytes(path, json.dumps(report.content).encode())
            except OSError as error:
                sys.stderr.write(f"{path} cannot be written ({error.strerror or error}).\n")
                return 2
            sys.stdout.write(f"wrote {path}\n")
    return int(any(row.remedy != NOTE for findings in tables.values() for row in findings))


if __name__ == "__main__":
    sys.exit(run_script(main))
