"""Checks for optional packages when they are needed."""

import importlib.util

from ..errors import ConfigError

__all__ = ["needed"]


def needed(*names: str) -> None:
    """
    Raises:
        ConfigError: a package is not installed; the message says how to get it.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"ONNX files need the packages {', '.join(missing)}: pip install 'instseg_d2[export]', or the lines of "
            "requirements.txt."
        )
