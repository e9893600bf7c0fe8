"""Show every recipe, its size, its published results and where to find the authors' weights."""

import argparse
import functools
import sys

EPILOG = "Example: %(prog)s --copy BlendMask/R_50_1x --to mine.yaml"


def _folder(known: list[str], text: str) -> str:
    return next((folder for folder in known if folder.lower() == text.lower()), text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from ..zoo import folders

    known = folders()
    parser.add_argument(
        "--method",
        nargs="+",
        type=functools.partial(_folder, known),
        choices=known,
        metavar="NAME",
        help=", ".join(known),
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--copy", metavar="RECIPE", help="write a recipe, with what it is based on, for editing")
    action.add_argument(
        "--count", action="store_true", help="build the models and print their sizes in million parameters"
    )
    action.add_argument("--write", action="store_true", help="put the tables into projects/*/README.md")
    parser.add_argument("--to", metavar="FILE", default="", help="file for --copy (default: the recipe's name, here)")


def main(args: argparse.Namespace) -> None:
    """Print the tables or sizes, copy a recipe, or write the tables to the pages."""
    from .. import zoo
    from ..config.recipes import copy_recipe, recipe_names
    from ..errors import ConfigError
    from ..files import write_bytes

    folders = args.method or zoo.folders()
    if args.to and not args.copy:
        raise ConfigError("--to names the file for --copy RECIPE: give both.")
    if args.copy:
        sys.stdout.write(f"wrote {copy_recipe(args.copy, args.to)}\n")
    elif args.write:
        for page, text in zoo.pages().items():
            if text != page.read_text(encoding="utf-8"):
                write_bytes(page, text.encode())
                sys.stdout.write(f"{page} written\n")
    elif args.count:
        names = [name for name in zoo.recipes() if name.split("/")[0] in folders]
        sys.stdout.write("".join(f"{name} {zoo.count(name):.1f}\n" for name in names))
    else:
        sys.stdout.write("".join(map(zoo.section, folders)))
        if not args.method:
            quick = [name for name in recipe_names() if name.startswith("quick/") and "Base-" not in name]
            sys.stdout.write(f"## Small recipes, to train from scratch on a laptop\n\n{', '.join(quick)}\n")
