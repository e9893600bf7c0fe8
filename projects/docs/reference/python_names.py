"""The reference of the Python names: every public name of the packages that users import, by mkdocstrings."""

import importlib
import inspect

__all__ = ["PACKAGES", "render"]

PACKAGES = (
    "runtime",
    "engine",
    "inference",
    "config",
    "data",
    "evaluation",
    "export",
    "checkpoint",
    "visualization",
    "methods",
    "ops",
    "errors",
)


def render() -> str:
    """One section a package, in Markdown, with a directive of mkdocstrings for each name in its ``__all__``."""
    lines = []
    for name in PACKAGES:
        package = importlib.import_module(f"instseg_d2.{name}")
        lines += [f"## instseg_d2.{name}", "", inspect.cleandoc(package.__doc__ or "").split("\n\n")[0], ""]
        for member in package.__all__:
            value = getattr(package, member)
            if inspect.isclass(value) or inspect.isfunction(value):
                lines += [f"::: instseg_d2.{name}.{member}", ""]
    return "\n".join(lines)
