"""Make a training recipe for a data set and this machine: a YAML file with the reason of each value as a comment."""

import argparse
import os
import sys

from ..arguments import add_recipe
from ..errors import ConfigError

EPILOG = """examples:
  %(prog)s --method NAME --train-json A --train-images DIR --output mine.yaml
  %(prog)s --method NAME --minutes 15 --train-json A --train-images DIR --output mine.yaml OUTPUT_DIR output/mine
  %(prog)s --config-file FILE --output mine.yaml DATASETS.TRAIN '("shapes_train",)'

`instseg train --config-file mine.yaml` trains with it; `train --auto` does both in one step."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="FILE", type=os.path.expanduser, help="YAML file to write")
    add_recipe(parser)


def main(args: argparse.Namespace) -> None:
    """Print the fingerprint of the data and the decisions, and write the recipe."""
    from ..engine.auto import fit_plan, make_plan, this_machine

    processes = this_machine(args.num_gpus, args.num_processes, args.num_machines).processes
    if args.minutes and processes > 1:
        raise ConfigError(
            f"`instseg recipe` cannot measure {processes} processes: leave --minutes out, or use `instseg train --auto "
            "--minutes`, which measures all."
        )
    plan = make_plan(args, args.output)
    if args.minutes:
        plan = fit_plan(plan, args)
    plan.write(args.output)
    sys.stdout.write(f"{plan.table()}\n\nwrote {args.output}\n")
