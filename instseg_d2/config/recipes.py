"""The recipes: the files of ``configs/``, which the wheel carries as ``instseg_d2/configs``."""

import difflib
import os
from pathlib import Path, PurePath
from typing import Optional, Union

import yaml
from detectron2.config import CfgNode

from ..errors import ConfigError
from ..files import write_bytes

__all__ = ["RecipeDumper", "copy_recipe", "find_recipe", "meant", "recipe_folder", "recipe_names"]

_PACKAGE = Path(__file__).resolve().parents[1]


class RecipeDumper(yaml.SafeDumper):
    """Writes a list on one line."""


RecipeDumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def recipe_folder() -> Path:
    """The folder in the installed package, or that of the checkout."""
    installed = _PACKAGE / "configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def recipe_names() -> list[str]:
    """All names, such as ``BlendMask/R_50_1x``; also of the files that others are based on."""
    folder = recipe_folder()
    return sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))


def _name(path: Union[str, os.PathLike]) -> str:
    """The name that is meant: ``configs/`` before it and ``.yaml`` after it may be written or not."""
    return PurePath(path).as_posix().removeprefix("configs/").removesuffix(".yaml")


def find_recipe(name: Union[str, os.PathLike]) -> Optional[str]:
    """The path of a recipe, or None if there is none of this name."""
    name = _name(name)
    return str(recipe_folder() / f"{name}.yaml") if name in recipe_names() else None


def meant(name: Union[str, os.PathLike]) -> str:
    """A question that names up to three similar recipes, or nothing."""
    known = {known.lower(): known for known in recipe_names() if "Base-" not in known}
    near = difflib.get_close_matches(_name(name).lower(), list(known), n=3, cutoff=0.5)
    return f" Did you mean {', '.join(known[name] for name in near)}?" if near else ""


def copy_recipe(name: str, path: Union[str, os.PathLike] = "") -> str:
    """
    Write a recipe and what it is based on into one file, for editing.

    Args:
        path: file to write; empty: the last part of the name, here.

    Returns:
        The file written.

    Raises:
        ConfigError: there is no such recipe, or the file exists.
    """
    source = find_recipe(name)
    if source is None:
        raise ConfigError(f"there is no recipe {name}.{meant(name)} `instseg zoo` lists them.")
    path = os.path.expanduser(path) or os.path.basename(source)
    if os.path.exists(path):
        raise ConfigError(f"{path} exists: name another file (--to).")
    values = CfgNode.load_yaml_with_base(source, allow_unsafe=False)
    text = yaml.dump(values, Dumper=RecipeDumper, sort_keys=False, width=120, allow_unicode=True)
    write_bytes(path, f"# A copy of {_name(name)} of instseg_d2, with what it is based on.\n{text}".encode())
    return path
