"""Writes a recipe as YAML, with the reasons as comments."""

import textwrap
from collections.abc import Mapping

import yaml

from ...config.recipes import RecipeDumper

__all__ = ["nested", "recipe_text"]

WIDTH = 120


def nested(values: Mapping) -> dict:
    """{"A.B": value} -> {"A": {"B": value}}."""
    tree: dict = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[name] = value
    return tree


def _line(name: str, value) -> str:
    value = list(value) if isinstance(value, tuple) else value
    return yaml.dump({name: value}, Dumper=RecipeDumper, width=10**6, allow_unicode=True).rstrip()


def _lines(tree: Mapping, reasons: Mapping, prefix: str, indent: str) -> list[str]:
    lines = []
    for name, value in tree.items():
        key, reason = f"{prefix}{name}", reasons.get(f"{prefix}{name}")
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}:", *_lines(value, reasons, f"{key}.", f"{indent}  ")]
            continue
        line = indent + _line(name, value)
        if reason and len(line) + len(reason) + 4 > WIDTH:
            lines += textwrap.wrap(reason, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
            reason = ""
        lines.append(f"{line}  # {reason}" if reason else line)
    return lines


def _printable(text: str) -> str:
    """Names of classes may have line breaks and control characters, which would end a comment."""
    return "".join(character if character.isprintable() else " " for character in text)


def recipe_text(head: list[str], tree: Mapping, reasons: Mapping) -> str:
    """
    Args:
        head: lines of comment above everything.
        tree: nested values.
        reasons: full name of a key -> the comment beside it.
    """
    reasons = {key: _printable(reason) for key, reason in reasons.items()}
    comments = [line for text in head for line in textwrap.wrap(_printable(text), WIDTH - 2)]
    return "\n".join([*(f"# {line}" for line in comments), *_lines(tree, reasons, "", "")]) + "\n"
