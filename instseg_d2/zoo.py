"""
``python -m instseg_d2.zoo``: every recipe, its size, its published results and where to find the authors' weights.

The numbers are stored only in zoo.yaml; ``--write`` copies them to the methods' pages.
"""

import argparse
import functools
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import yaml
from tabulate import tabulate

from .console import run_script
from .files import write_bytes
from .methods import Publication, methods

ROOT = Path(__file__).resolve().parents[1]  # needs a checkout: configs/ and projects/ are not installed
COLUMNS = (
    "note", "parameters, M", "mask AP", "box AP", "test-dev mask AP", "test-dev box AP", "PQ",
    "AR@10", "AR@100", "AR@1000", "mask AP50", "mask AP70", "FPS",
)  # fmt: skip
# A table in a page, preceded by the folders that it lists.
BLOCK = re.compile(r"(<!-- zoo: ([^\n]+) -->\n).*?(<!-- /zoo -->)", re.S)


@functools.lru_cache(maxsize=1)
def recipes() -> dict[str, dict]:
    """Name below configs/, without .yaml -> column -> value."""
    return yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))


def publications() -> dict[str, Publication]:
    """Where the recipes of each folder of configs/ come from."""
    heads = Publication("MaskRCNN-heads", "recipes of this package", "none")
    return {x.folder: x for x in (*(method.publication for method in methods()), heads) if x is not None}


def count(name: str) -> float:
    """Parameters of the recipe's model in millions, without allocating them."""
    import torch
    from detectron2.modeling import build_model

    from .apps.costs import count_parameters
    from .config import load_config

    cfg = load_config(str(ROOT / f"configs/{name}.yaml"), ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""])
    with torch.device("meta"):
        return count_parameters(build_model(cfg)) / 1e6


def table(folders: Sequence[str]) -> str:
    """A Markdown table of the recipes directly in these folders, followed by further published results."""
    found = {name: row for name, row in recipes().items() if name.rpartition("/")[0] in folders}
    columns = [column for column in COLUMNS if any(column in row for row in found.values())]
    rows = [[name, *(row.get(column, "") for column in columns)] for name, row in found.items()]
    text = tabulate(rows, ["config", *columns], tablefmt="pipe", disable_numparse=True)
    known = publications()
    notes = [known[folder].note for folder in folders if folder in known]
    return "\n\n".join([text, *(textwrap.fill(note, 120, break_on_hyphens=False) for note in notes if note)])


def pages() -> dict[Path, str]:
    """
    The methods' pages with up-to-date tables: path -> text.

    Raises:
        FileNotFoundError: this is not a checkout.
    """
    found = sorted(ROOT.glob("projects/*/README.md"))
    if not found:
        raise FileNotFoundError(f"{ROOT} has no projects/*/README.md: run this in a checkout of the sources.")
    return {
        page: BLOCK.sub(lambda m: f"{m[1]}\n{table(m[2].split())}\n\n{m[3]}", page.read_text(encoding="utf-8"))
        for page in found
    }


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Print the tables, or write them to the pages."""
    parser = argparse.ArgumentParser(prog="python -m instseg_d2.zoo", description=__doc__.split(": ", 1)[1])
    known = {folder.lower(): folder for folder in publications()}
    parser.add_argument(
        "--method", nargs="+", type=str.lower, choices=list(known), metavar="NAME", help=", ".join(known.values())
    )
    parser.add_argument(
        "--count", action="store_true", help="build the models and print their sizes in million parameters"
    )
    parser.add_argument("--write", action="store_true", help="put the tables into projects/*/README.md")
    args = parser.parse_args(arguments)
    if args.write:
        for page, text in pages().items():
            if text != page.read_text(encoding="utf-8"):
                write_bytes(page, text.encode())
                sys.stdout.write(f"{page} written\n")
        return
    for folder in [known[name] for name in args.method or known]:
        names = [name for name in recipes() if name.split("/")[0] == folder]
        if args.count:
            sys.stdout.write("".join(f"{name} {count(name):.1f}\n" for name in names))
            continue
        source = publications()[folder]
        sys.stdout.write(f"## {folder} ({source.paper})\n\nWeights: {source.weights}.\n\n")
        sys.stdout.write(f"{table(list(dict.fromkeys(name.rpartition('/')[0] for name in names)))}\n\n")


if __name__ == "__main__":
    sys.exit(run_script(main))
