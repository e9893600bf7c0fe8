"""``python -m instseg_d2.check_data``: finds faults in COCO files and their images, and writes clean copies."""

import argparse
import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from typing import Optional

from tabulate import tabulate

from .console import run_script
from .data.coco import class_difference
from .data.coco_check import Report, examine
from .data.faults import ERROR, KEPT, NOTE, WARNING, Finding
from .data.units import READINGS
from .errors import DatasetError
from .files import write_bytes

HEADERS = ("what", "how many", "first", "training", "clean copy")
READING_HELP = "; ".join(f"{name}: {meaning}" for name, meaning in READINGS.items())


def parse(arguments: Optional[Sequence[str]] = None):
    parser = argparse.ArgumentParser(
        prog="python -m instseg_d2.check_data",
        description="Find missing, corrupt and repeated images and wrong ids, boxes, masks, areas and units.",
        epilog="Exit status: 0 no faults, 1 faults, 2 a file that cannot be read or written.",
    )
    parser.add_argument(
        "files",
        type=os.path.expanduser,
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
        help=f"what the coordinates mean, for --fix to convert them ({READING_HELP}; nothing: keep them)",
    )
    args = parser.parse_args(arguments)
    if len(args.files) % 2:
        parser.error("give an image folder after every annotation file: JSON IMAGES [JSON IMAGES ...]")
    return args


def class_differences(reports: dict[str, Report]) -> list[Finding]:
    """Differences between the files' classes, which training refuses."""
    first, *others = (report.classes for report in reports.values())
    differences = [class_difference(first, classes, "file 1", f"file {i}") for i, classes in enumerate(others, start=2)]
    found = [difference for difference in differences if difference]
    return [Finding("categories: different from the first file's", len(found), found[0], ERROR, KEPT)] if found else []


def shared_pictures(reports: dict[str, Report]) -> list[Finding]:
    """Images that occur in more than one file, so that a validation on them means little."""
    files = defaultdict(list)
    for file, report in reports.items():
        for digest, name in report.pictures.items():
            files[digest].append(f"{name} of {file}")
    shared = [" and ".join(names) for names in files.values() if len(names) > 1]
    return [Finding("images: the same picture in two files", len(shared), shared[0], WARNING, KEPT)] if shared else []


def _write_clean(file: str, report: Report) -> int:
    """Write the clean copy of a file, unless its coordinates are ambiguous; returns the exit status."""
    path = f"{os.path.splitext(file)[0]}.clean.json"
    if report.readings:
        readings = " ".join(report.readings)
        sys.stdout.write(f"no clean copy of {file}: add --assume {readings}, or --assume nothing to keep them\n")
        return 1
    if not report.content["annotations"]:
        sys.stdout.write(f"no clean copy of {file}: no annotation would be left\n")
        return 1
    try:
        write_bytes(path, json.dumps(report.content).encode())
    except OSError as error:
        sys.stderr.write(f"{path} cannot be written ({error.strerror or error}).\n")
        return 2
    sys.stdout.write(f"wrote {path}\n")
    return 0


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Print a table for each file, and one for what the files share; returns the exit status."""
    args = parse(arguments)
    pairs = dict(zip(args.files[::2], args.files[1::2]))
    progress = sys.stderr.isatty()
    try:
        reports = {file: examine(file, images, assume=args.assume, progress=progress) for file, images in pairs.items()}
    except DatasetError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    tables = {f"{file}: {report.summary}": report.findings for file, report in reports.items()}
    if len(reports) > 1:
        tables[f"between the {len(reports)} files"] = [*class_differences(reports), *shared_pictures(reports)]
    for title, findings in tables.items():
        rows = [
            (row.what, row.count, row.first if len(row.first) <= 60 else row.first[:57] + "...", *row[3:])
            for row in findings
        ]
        sys.stdout.write(f"{title}\n{tabulate(rows, HEADERS) if rows else 'nothing found'}\n\n")
    status = int(any(row.severity != NOTE for findings in tables.values() for row in findings))
    if args.fix:
        status = max(status, *(_write_clean(file, report) for file, report in reports.items()))
    return status


if __name__ == "__main__":
    sys.exit(run_script(main))
