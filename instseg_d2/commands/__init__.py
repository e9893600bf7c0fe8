"""
What users start: one module a command, also behind the scripts of ``projects/``.

A module has a docstring, which its help shows, ``add_arguments(parser)``, ``main(args)``, which returns the exit
status, and an ``EPILOG`` for its help.
"""

import argparse
import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import Optional

from ..console import run_script

__all__ = ["parse", "run"]


def _parser(command: ModuleType, prog: Optional[str]) -> argparse.ArgumentParser:
    epilog = command.EPILOG
    wrapped = argparse.RawDescriptionHelpFormatter if "\n" in epilog else argparse.HelpFormatter
    parser = argparse.ArgumentParser(prog=prog, description=command.__doc__, epilog=epilog, formatter_class=wrapped)
    command.add_arguments(parser)
    return parser


def parse(name: str, arguments: Optional[Sequence[str]] = None, prog: Optional[str] = None) -> argparse.Namespace:
    """The arguments of a command, by default those of this process."""
    return _parser(importlib.import_module(f"{__name__}.{name}"), prog).parse_args(arguments)


def run(name: str, arguments: Optional[Sequence[str]] = None, prog: Optional[str] = None) -> int:
    """Run a command; returns its exit status, 2 after a user error."""
    command = importlib.import_module(f"{__name__}.{name}")
    args = _parser(command, prog).parse_args(arguments)
    return run_script(command.main, args)
