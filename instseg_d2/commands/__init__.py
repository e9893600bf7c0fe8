"""
The program ``instseg``: one module a command, also behind the scripts of ``projects/``.

A module has a docstring, which its help shows; ``add_arguments(parser)``; ``main(args)``, which returns the exit
status; and an ``EPILOG`` for its help. It imports PyTorch only where it needs it, so that help comes at once.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Optional

from .. import __version__, register
from ..console import run_script
from ..errors import ConfigError, is_user_error

__all__ = ["COMMANDS", "main", "parse", "parser_of", "run"]

COMMANDS = {
    "train": "train a method, on your own data or a registered data set",
    "recipe": "make a recipe for your data and this machine, with reasons",
    "evaluate": "measure a trained model on annotated images",
    "predict": "detect instances in images or a video",
    "explain": "the same, with pictures of what the network sees",
    "export": "write a trained model as ONNX, OpenVINO or .pt2, and check the file",
    "compare": "compare models on the same data",
    "check": "find faults in annotations and images, and write clean copies",
    "convert": "convert labels between COCO, YOLO, LabelMe, VIA, VOC masks and Label Studio",
    "ui": "open a page in the browser for photos, videos and a data set",
    "zoo": "list the recipes with their published results, or copy one for editing",
    "doctor": "show what is installed, and what to do about anything missing",
}


def parser_of(name: str, prog: Optional[str] = None) -> argparse.ArgumentParser:
    """The parser of a command; prog: its name in the help, default: this program's."""
    command = importlib.import_module(f"{__name__}.{name}")
    epilog = command.EPILOG
    wrapped = argparse.RawDescriptionHelpFormatter if "\n" in epilog else argparse.HelpFormatter
    parser = argparse.ArgumentParser(prog=prog, description=command.__doc__, epilog=epilog, formatter_class=wrapped)
    command.add_arguments(parser)
    return parser


def parse(name: str, arguments: Optional[Sequence[str]] = None, prog: Optional[str] = None) -> argparse.Namespace:
    """The arguments of a command, by default those of this process."""
    return parser_of(name, prog).parse_args(arguments)


def _register() -> None:
    try:
        register()
    except ImportError as error:
        if error.name == "detectron2":  # its message says what to do
            raise ConfigError(str(error)) from error
        raise ConfigError(f"{error}: `instseg doctor` shows what is missing.") from error
    except Exception as error:  # a package compiled for another version of PyTorch, NumPy or CUDA raises any kind
        if is_user_error(error):
            raise
        message = f"the installed packages do not fit together ({error}): `instseg doctor` shows their versions."
        raise ConfigError(message) from error


def _run(name: str, arguments: Optional[Sequence[str]], prog: Optional[str]) -> int:
    args = parse(name, arguments, prog)
    if name != "doctor":  # which reports what is missing
        _register()
    return importlib.import_module(f"{__name__}.{name}").main(args)


def run(name: str, arguments: Optional[Sequence[str]] = None, prog: Optional[str] = None) -> int:
    """Run a command; returns its exit status, 2 after a user error."""
    return run_script(_run, name, arguments, prog)


def _instseg(arguments: Sequence[str]) -> int:
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="instseg",
        description="Instance segmentation with Detectron2: train, evaluate, explain and deploy.",
        epilog=f"commands:\n{lines}\n\n`instseg COMMAND --help` shows the arguments of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"instseg_d2 {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of those below")
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="its arguments")
    name = parser.parse_args(arguments[:1]).command
    return _run(name, arguments[1:], f"instseg {name}")


def main() -> int:
    """The program ``instseg``; returns its exit status."""
    return run_script(_instseg, sys.argv[1:])
