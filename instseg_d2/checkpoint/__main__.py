"""``python -m instseg_d2.checkpoint SOURCE TARGET``: converts weights to another format and to this package's names."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Optional

import torch

from ..console import run_script
from ..errors import CheckpointError
from .authors import convert_state_dict
from .formats import INFORMATION, read_weights
from .layouts import plain_names
from .paths import local_file
from .writing import save_safetensors, write_checkpoint_file


def convert_file(source: str, target: str, trust: bool = False) -> int:
    """
    Write the weights of ``source`` (from this package, the authors or Detectron2; .pth, .pkl or .safetensors) to
    ``target`` (.safetensors or .pth), with config and class names if known, but without optimiser and hooks.

    Args:
        source: path of the file; with ?sha256=DIGEST appended, its SHA-256 is checked.
        trust: allow the source to run code that it contains.

    Returns:
        The number of tensors written.

    Raises:
        CheckpointError: a file cannot be read or written, source and target are the same file, the target has another
            suffix, or the names of the weights can only be matched to a model.
    """
    if not target.endswith((".safetensors", ".pth")) or os.path.isdir(target):
        raise CheckpointError(f"{target}: the target must be a file that ends in .safetensors or .pth.")
    source = local_file(source)
    if os.path.exists(target) and os.path.samefile(source, target):
        raise CheckpointError(
            f"{target} is also the source: choose another target, since converting in place would lose the optimiser."
        )
    data = read_weights(source, trust)
    if data.get("matching_heuristics"):
        raise CheckpointError(
            f"{source} is not a complete model: load it with MODEL.WEIGHTS, which matches its names to the model's."
        )
    state = {name: torch.as_tensor(value) for name, value in data["model"].items()}
    state = convert_state_dict(plain_names(source, state))
    information = {key: data[key] for key in INFORMATION if key in data}
    if target.endswith(".safetensors"):
        save_safetensors(target, state, **information)
    else:
        write_checkpoint_file(target, lambda file: torch.save({"model": state, **information}, file))
    return len(state)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Convert a file."""
    parser = argparse.ArgumentParser(prog="python -m instseg_d2.checkpoint", description=__doc__.split(": ", 1)[1])
    parser.add_argument("source", type=os.path.expanduser, help="weights to read: .pth, .pkl or .safetensors")
    parser.add_argument("target", type=os.path.expanduser, help="file to write: .safetensors or .pth")
    parser.add_argument(
        "--trust", action="store_true", help="read a file that may run code, if you trust where it comes from"
    )
    args = parser.parse_args(arguments)
    count = convert_file(args.source, args.target, args.trust)
    sys.stdout.write(f"{args.target}: {count} tensors\n")


if __name__ == "__main__":
    sys.exit(run_script(main))
