"""Reads weight files without running code that they may contain."""

import functools
import json
import logging
import os
import pickle
import pickletools
import re
from typing import Callable

import torch
from torch import nn

from ..errors import CheckpointError
from .identify import damaged, format_of, verify_checksums
from .layouts import find_weights
from .paths import local_file
from .pickles import load_arrays

__all__ = ["INFORMATION", "load_torch", "read_checkpoint_info", "read_extra", "read_weights"]

logger = logging.getLogger(__name__)

# Entries of this package's checkpoints beside the weights: a text, and lists.
INFORMATION = ("cfg", "class_names", "category_ids", "stuff_names")
_PICKLES = {"old": 5, "pickle": 1}  # number of consecutive pickles in a file


def _refused(path: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not loaded, because it holds more than weights and could run code: {reason}. "
        f"If you trust its source, `python -m instseg_d2.checkpoint --trust {path} clean.pth` extracts its weights."
    )


def _is_whole(path: str, pickles: int) -> bool:
    try:
        with open(path, "rb") as file:
            for _ in range(pickles):
                for _ in pickletools.genops(file):
                    pass
    except Exception:
        return False
    return True


def _read(path: str, kind: str, trust: bool, read: Callable[[], object]) -> dict:
    """Return what ``read`` returns, a dict; errors of Python and PyTorch are explained."""
    try:
        data = read()
    except Exception as error:  # a damaged file may raise anything
        text = " ".join(str(error).split())
        named = re.search(r"GLOBAL (\S+)", text)
        if not _is_whole(path, _PICKLES.get(kind, 0)):
            raise damaged(path, "it is truncated") from error
        if trust and isinstance(error, (AttributeError, ImportError)):
            raise CheckpointError(f"{path} needs code that is not installed ({text}).") from error
        if named or isinstance(error, pickle.UnpicklingError):
            raise _refused(path, f"it refers to {named[1]}" if named else text[-100:]) from None
        if "TorchScript" in text:
            raise _refused(path, "it is a TorchScript model") from None
        raise damaged(path, f"it cannot be read to its end ({text[:100] or type(error).__name__})") from error
    if isinstance(data, nn.Module):  # in a trusted file
        return {"model": data}
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} contains a {type(data).__name__}, not a dict of weights.")
    return data


def _read_pickle(path: str, trust: bool) -> dict:
    def read():
        with open(path, "rb") as file:
            return pickle.load(file, encoding="latin1") if trust else load_arrays(file)

    data = _read(path, "pickle", trust, read)
    if "model" in data:  # Detectron2's model zoo
        return data
    # Caffe2 and Detectron: detection models keep their weights under "blobs", ImageNet models at the top.
    blobs = data.get("blobs", data)
    if isinstance(blobs, dict):
        blobs = {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}


@functools.lru_cache(maxsize=1)
def _warn_of_old_torch() -> None:
    """Warn once per process."""
    if torch.__version__ < (2, 10):
        logger.warning(
            "PyTorch %s has the vulnerability CVE-2026-24747: a crafted .pth file can exploit it, even if only weights "
            "are read; use safetensors files or PyTorch 2.10.",
            torch.__version__,
        )


def _read_torch(path: str, kind: str, trust: bool, mmap: bool = False) -> dict:
    if not trust:
        if kind == "tar":  # PyTorch before 2.6 runs their code anyway: CVE-2025-32434
            raise _refused(path, "it is in PyTorch's first format, a tar file")
        _warn_of_old_torch()

    data = _read(path, kind, trust, lambda: torch.load(path, map_location="cpu", weights_only=not trust, mmap=mmap))
    if "model_state" in data and "model" not in data:  # pycls
        return {"model": data["model_state"], "__author__": "pycls", "matching_heuristics": True}
    return data


def load_torch(path) -> dict:
    """
    The dict of a PyTorch file, on the CPU.

    Raises:
        CheckpointError: it is not a PyTorch file, is damaged, contains no dict, or contains objects that could run
            code.
    """
    path = os.fspath(path)
    kind = format_of(path)
    if kind in ("safetensors", "pickle"):
        raise CheckpointError(f"{path} is a {kind} file, not a PyTorch file.")
    return _read_torch(path, kind, trust=False)


def _read_safetensors(path: str, weights: bool) -> dict:
    from safetensors import safe_open

    def read():
        with safe_open(path, framework="pt") as file:
            info = file.metadata() or {}
            data = {"model": {name: file.get_tensor(name) for name in file.keys()}} if weights else {}  # noqa: SIM118
        data.update({key: info[key] if key == "cfg" else json.loads(info[key]) for key in INFORMATION if key in info})
        return data

    return _read(path, "safetensors", False, read)


def read_weights(path, trust: bool = False) -> dict:
    """
    Read a local weight file as data, on the CPU: a PyTorch or safetensors file, or a pickle of NumPy arrays
    (Detectron2's zoo, Caffe2). The format is recognised by the content, not by the name.

    Args:
        trust: allow the file to run code that it contains.

    Returns:
        A dict with "model" (name -> tensor or array) and the other content of the file; "matching_heuristics" marks
        files whose names Detectron2 matches by their endings.

    Raises:
        CheckpointError: the file is missing, damaged or not a weight file, has no weights, or contains objects that
            could run code.
    """
    path = os.fspath(path)
    kind = format_of(path)
    if kind == "zip":
        verify_checksums(path)
    if kind == "pickle":
        data = _read_pickle(path, trust)
    elif kind == "safetensors":
        data = _read_safetensors(path, weights=True)
    else:
        data = _read_torch(path, kind, trust)
    weights, note = find_weights(path, data)
    if note:
        logger.info(note)
    return {**data, "model": weights}


def read_extra(path) -> dict:
    """
    Read the content of a checkpoint of this package without its weights (cfg, class_names, iteration, ...), quickly.

    Args:
        path: path of a local file; with ?sha256=DIGEST appended, its SHA-256 is checked first.

    Returns:
        A dict; empty for formats that have no such content.

    Raises:
        CheckpointError: see :func:`read_weights`; or the SHA-256 differs.
    """
    path = local_file(path)
    kind = format_of(path)
    if kind == "safetensors":
        data = _read_safetensors(path, weights=False)
    elif kind == "zip":
        data = _read_torch(path, kind, trust=False, mmap=True)
        find_weights(path, data)
    else:
        data = read_weights(path)
    return {key: value for key, value in data.items() if key != "model"}


def read_checkpoint_info(path):
    """
    The config and class names stored in a checkpoint of this package; path as in `read_extra`.

    Returns:
        (config as YAML text or None, class names or None)

    Raises:
        CheckpointError: see :func:`read_extra`.
    """
    extra = read_extra(path)
    return extra.get("cfg"), extra.get("class_names")
