"""Loads the compiled operators, if there are any."""

import importlib
import logging
import os
from typing import Optional

logger = logging.getLogger(__name__)


def _load() -> Optional[str]:
    if os.environ.get("INSTSEG_NO_EXT", "0") not in ("", "0"):
        return None
    try:
        return importlib.import_module("instseg_d2._C").built_for
    except ModuleNotFoundError:
        return None
    except ImportError as error:
        logger.warning(
            "The compiled operators do not fit this PyTorch (%s), so slower ones are used; "
            "rebuild them with `pip install --no-build-isolation .` in the folder of instseg_d2.",
            error,
        )
        return None


_BUILT_FOR = _load()


def has_extension() -> Optional[str]:
    """What the compiled operators were built for: ``"cuda"`` (which includes the CPU), ``"cpu"``, or None.

    Also None if the environment variable INSTSEG_NO_EXT is set: the operators are then the functions of
    :mod:`instseg_d2.ops.reference`, on every device.
    """
    return _BUILT_FOR


def serves(device_type: str) -> bool:
    """Whether the compiled operators run on devices of this type ("cpu", "cuda", ...)."""
    return device_type in {"cpu": ("cpu", "meta"), "cuda": ("cpu", "cuda", "meta")}.get(_BUILT_FOR, ())
