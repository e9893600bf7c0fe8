"""Show what is installed, in which version, and what to do about anything missing."""

import argparse

from .. import doctor

EPILOG = "Exit status: 0, or 1 if something needed is missing or broken."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has none."""


def main(args: argparse.Namespace) -> int:
    return doctor.main()
