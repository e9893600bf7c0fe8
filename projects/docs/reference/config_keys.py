"""The reference of the config keys, from their comments in instseg_d2/config/ and the rules of their values."""

import ast
import inspect
import io
import sys
import textwrap
import tokenize
from collections.abc import Callable
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_cfg

from instseg_d2.config import backbones, common, get_cfg
from instseg_d2.config.values import Rule, items
from instseg_d2.methods import methods

__all__ = ["Key", "config_keys", "meanings", "render"]


class Key(NamedTuple):
    """A config key: its default and its meaning; allowed: the rule of its values in words, if there is one."""

    name: str
    default: object
    meaning: str
    allowed: str


def _comments(source: str) -> dict[int, tuple[str, bool]]:
    """Line -> its comment, and whether it stands alone there."""
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            alone = token.line[: token.start[1]].strip() == ""
            found[token.start[0]] = (token.string.lstrip("# "), alone)
    return found


def _meaning(statement: ast.stmt, comments: dict[int, tuple[str, bool]]) -> str:
    """The comment at the end of a statement, or else the lines of comment directly above it."""
    text, alone = comments.get(statement.end_lineno, ("", False))
    if text and not alone:
        return text
    lines, line = [], statement.lineno - 1
    while comments.get(line, ("", False))[1]:
        lines.insert(0, comments[line][0])
        line -= 1
    return " ".join(lines)


def meanings(add_config: Callable[[CfgNode], None]) -> dict[str, str]:
    """The keys that a function adds to ``cfg`` -> their comments, empty without one."""
    source = textwrap.dedent(inspect.getsource(add_config))
    comments = _comments(source)
    found, node = {}, {}
    for statement in ast.parse(source).body[0].body:
        if not isinstance(statement, ast.Assign):
            continue
        name, value = ast.unparse(statement.targets[0]), ast.unparse(statement.value)
        if name == "node":
            node = {}
        elif value == "node":  # cfg.MODEL.X = node
            found.update({f"{name[4:]}.{key}": text for key, text in node.items()})
        elif value != "CfgNode()":
            (node if name.startswith("node.") else found)[name.split(".", 1)[1]] = _meaning(statement, comments)
    return found


def _rules(add_config: Callable) -> dict[str, Rule]:
    """What `values.section` made in the module of this function."""
    tables = vars(sys.modules[add_config.__module__]).items()
    return {key: rule for name, table in tables if name.endswith("_VALUES") for key, rule in table.items()}


def _values(cfg: CfgNode) -> dict[str, object]:
    return {name: value for name, value in items(cfg) if not isinstance(value, CfgNode)}


def config_keys() -> dict[str, list[Key]]:
    """
    Title of a group -> its keys: every key of this package that Detectron2 does not have.

    Raises:
        ValueError: a key has no comment.
    """
    of_detectron2 = _values(detectron2_cfg())
    left = {name: value for name, value in _values(get_cfg()).items() if name not in of_detectron2}
    sources = {"All methods": common.add_common_config, "Backbones": backbones.add_backbone_config}
    sources |= {method.name: method.add_config for method in methods()}
    groups = {}
    for title, add_config in sources.items():
        rules = _rules(add_config)
        groups[title] = [
            Key(name, left.pop(name), text, rules[name].text if name in rules else "")
            for name, text in meanings(add_config).items()
            if name in left
        ]
    silent = [*left, *(key.name for keys in groups.values() for key in keys if not key.meaning)]
    if silent:
        raise ValueError(f"config keys without a comment in instseg_d2/config/: {', '.join(silent)}")
    return {title: keys for title, keys in groups.items() if keys}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def render() -> str:
    """One table a group, in Markdown."""
    lines = []
    for title, keys in config_keys().items():
        lines += [f"## {title}", "", "| key | default | meaning | allowed |", "|---|---|---|---|"]
        for key in keys:
            default = "empty" if key.default in ("", ()) else f"`{key.default}`"
            name = key.name.replace(".", ".<wbr>")  # where a long name may be broken
            lines.append(f"| <code>{name}</code> | {default} | {_cell(key.meaning)} | {_cell(key.allowed)} |")
        lines.append("")
    return "\n".join(lines)
