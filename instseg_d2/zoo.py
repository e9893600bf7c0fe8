"""
``instseg zoo``: every recipe, its size, its published results and where to find the authors' weights.

The numbers are stored only in zoo.yaml; ``--write`` copies them to the methods' pages.
"""

import functools
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import yaml
from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]  # of a checkout: projects/ is not installed
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


def folders() -> list[str]:
    """The folders of configs/ whose recipes are in the table."""
    return list(dict.fromkeys(name.split("/")[0] for name in recipes()))


def publications() -> dict:
    """Where the recipes of each folder of configs/ come from: folder -> `methods.Publication`."""
    from .methods import Publication, methods

    heads = Publication("MaskRCNN-heads", "recipes of this package", "none")
    return {x.folder: x for x in (*(method.publication for method in methods()), heads) if x is not None}


def count(name: str) -> float:
    """Parameters of the recipe's model in millions, without allocating them."""
    import torch
    from detectron2.modeling import build_model

    from .apps.costs import count_parameters
    from .config import load_config

    cfg = load_config(name, ["MODEL.DEVICE", "meta", "MODEL.WEIGHTS", ""])
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


def section(folder: str) -> str:
    """What the command shows of a folder: its paper, where its weights are, and its tables."""
    source = publications()[folder]
    inner = dict.fromkeys(name.rpartition("/")[0] for name in recipes() if name.split("/")[0] == folder)
    return f"## {folder} ({source.paper})\n\nWeights: {source.weights}.\n\n{table(list(inner))}\n\n"


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


if __name__ == "__main__":
    from .commands import run

    sys.exit(run("zoo", prog="python -m instseg_d2.zoo"))
