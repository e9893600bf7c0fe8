"""``instseg check``: finds faults in COCO files and their images, and writes clean copies."""

import json
import os
import sys
from collections import defaultdict
from collections.abc import Sequence

from tabulate import tabulate

from .data.coco import class_difference
from .data.coco_check import Report, examine
from .data.faults import ERROR, KEPT, NOTE, WARNING, Finding
from .errors import DatasetError
from .files import write_bytes

HEADERS = ("what", "how many", "first", "training", "clean copy")


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


def check(pairs: dict[str, str], *, fix: bool, assume: Sequence[str]) -> int:
    """
    Print a table for each file, and one for what the files share.

    Args:
        pairs: annotation file -> image folder.
        fix: write clean copies.
        assume: readings of the coordinates, see `data.units`.

    Returns:
        The exit status: 0 no faults, 1 faults, 2 a file that cannot be read or written.
    """
    progress = sys.stderr.isatty()
    try:
        reports = {file: examine(file, images, assume=assume, progress=progress) for file, images in pairs.items()}
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
    if fix:
        status = max(status, *(_write_clean(file, report) for file, report in reports.items()))
    return status


if __name__ == "__main__":
    from .commands import run

    sys.exit(run("check", prog="python -m instseg_d2.check_data"))
