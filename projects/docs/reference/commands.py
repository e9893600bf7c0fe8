"""The reference of the commands, from their parsers."""

import argparse
import os

from instseg_d2.commands import COMMANDS, parser_of

__all__ = ["render"]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def _argument(action: argparse.Action, formatter: argparse.HelpFormatter) -> str:
    names = action.option_strings or [formatter._format_args(action, action.dest)]
    if action.nargs == argparse.REMAINDER:
        names = ["KEY VALUE ..."]
    value = ""
    if action.option_strings and action.nargs != 0:
        value = " " + formatter._format_args(action, action.dest.upper())
    meaning = (action.help or "") % {**vars(action), "prog": "instseg"}
    if action.choices and action.metavar:
        meaning += f": {', '.join(map(str, action.choices))}" if not meaning.strip() else ""
    default = action.default
    shown = default not in (None, "", False, argparse.SUPPRESS) and default != [] and "default" not in meaning
    return f"| `{', '.join(names)}{value}` | {_cell(meaning)}{f' (default `{default}`)' if shown else ''} |"


def render() -> str:
    """One section a command, in Markdown."""
    os.environ["COLUMNS"] = "100"  # width of the usage
    lines = []
    for name in COMMANDS:
        parser = parser_of(name, f"instseg {name}")
        formatter = parser._get_formatter()
        lines += [f"## instseg {name}", "", parser.description, "", "```text", parser.format_usage().strip(), "```"]
        actions = [action for action in parser._actions if not isinstance(action, argparse._HelpAction)]
        if actions:
            lines += ["", "| argument | meaning |", "|---|---|", *(_argument(action, formatter) for action in actions)]
        if parser.epilog:
            lines += ["", "```text", parser.epilog.replace("%(prog)s", parser.prog), "```"]
        lines.append("")
    return "\n".join(lines)
