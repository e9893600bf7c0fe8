"""The converter as a command."""

from instseg_d2.checkpoint.__main__ import main
from instseg_d2.console import run_script


def convert(arguments):
    """The exit status of ``python -m instseg_d2.checkpoint ARGUMENTS``."""
    return run_script(main, arguments)
