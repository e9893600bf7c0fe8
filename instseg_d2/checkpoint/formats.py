"""Reading and writing weight files without running code that they might contain, and never half a file."""

import errno
import functools
import hashlib
import json
import logging
import os
import pickle
import re
import tarfile
import zipfile
from typing import Callable, Optional

import numpy as np
import torch

from ..errors import CheckpointError
from ..files import written_whole
from .pickles import ARRAY_CODES, load_arrays

__all__ = [
    "check_sha256",
    "load_torch",
    "local_file",
    "read_checkpoint_info",
    "read_extra",
    "read_weights",
    "save_safetensors",
    "split_query",
    "write_checkpoint_file",
]

logger = logging.getLogger(__name__)

# What a checkpoint of this package says beside its weights: a text, and lists.
INFORMATION = ("cfg", "class_names", "category_ids", "stuff_names")
# What damaged files raise in Python and PyTorch.
_DAMAGES = (EOFError, ValueError, TypeError, LookupError, AttributeError, MemoryError, OverflowError, RuntimeError)


def _refused(path: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} is not loaded, because it holds more than weights and could run code: {reason}. "
        f"If you trust its source, `python -m instseg_d2.checkpoint --trust {path} clean.pth` writes its weights alone."
    )


def split_query(path: str) -> tuple[str, dict[str, str]]:
    """
    The path and what follows a question mark: ``matching_heuristics=True``, ``sha256=DIGEST``, joined by &.

    Raises:
        CheckpointError: anything else follows.
    """
    path, _, query = path.partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    known = {"matching_heuristics": "True", "sha256": "[0-9a-fA-F]{64}"}
    for key, value in options.items():
        if not re.fullmatch(known.get(key, "$^"), value):
            raise CheckpointError(
                f"{path}?{query}: ?matching_heuristics=True and ?sha256=64 HEXADECIMAL DIGITS are known after a path."
            )
    return path, options


def check_sha256(path: str, digest: str) -> None:
    """
    Raises:
        CheckpointError: the file has another SHA-256.
    """
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    if found.hexdigest() != digest.lower():
        raise CheckpointError(f"{path} is not loaded: its SHA-256 is {found.hexdigest()}, expected {digest.lower()}.")


def local_file(path: str) -> str:
    """
    The path alone of a local file that may be followed by a query.

    Raises:
        CheckpointError: there is no such file, it has another SHA-256 than the query says, or the query is unknown.
    """
    path, options = split_query(path)
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: there is no such weight file.")
    if "sha256" in options:
        check_sha256(path, options["sha256"])
    return path


def _read_pickle(path: str, trust: bool = False) -> dict:
    try:
        with open(path, "rb") as file:
            data = pickle.load(file, encoding="latin1") if trust else load_arrays(file)
    except pickle.UnpicklingError as error:
        if "refers to" in str(error):
            raise _refused(path, str(error)) from None
        raise CheckpointError(f"{path} is no pickle file or is damaged: {error}.") from error
    except _DAMAGES as error:
        raise CheckpointError(f"{path} is no pickle file or is damaged ({type(error).__name__}: {error}).") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__} where a dict of weights was expected.")
    if "model" in data and "__author__" in data:  # Detectron2's model zoo
        return data
    # Caffe2 and Detectron: detection models keep their weights under "blobs", ImageNet models at the top.
    blobs = data.get("blobs", data)
    if isinstance(blobs, dict):
        blobs = {name: value for name, value in blobs.items() if not str(name).endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}


@functools.lru_cache(maxsize=1)
def _warn_of_old_torch() -> None:
    """Once a process."""
    if torch.__version__ < (2, 10):
        logger.warning(
            "PyTorch %s has the fault CVE-2026-24747: a crafted .pth file can break into it, even if only weights are "
            "read; safetensors files or PyTorch 2.10 are safer.",
            torch.__version__,
        )


def load_torch(path: str, mmap: bool = False, trust: bool = False) -> dict:
    """
    The dict of a PyTorch file, on the CPU.

    Args:
        mmap: leave the weights on the disk until they are used.
        trust: let the file run whatever code it holds.

    Raises:
        CheckpointError: the file is damaged, holds no dict, or objects that could run code.
    """
    if not trust:
        if tarfile.is_tarfile(path):  # PyTorch before 2.6 runs code of these all the same: CVE-2025-32434
            raise _refused(path, "it is in PyTorch's first format, a tar file")
        _warn_of_old_torch()
    try:
        data = torch.load(path, map_location="cpu", weights_only=not trust, mmap=mmap)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        if name:
            raise _refused(path, f"it refers to {name[1]}") from None
        raise CheckpointError(f"{path} is no PyTorch checkpoint or is damaged.") from error
    except (*_DAMAGES, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is no PyTorch checkpoint or is damaged.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__} where a dict of weights was expected.")
    return data


def _read_torch(path: str, mmap: bool = False, trust: bool = False) -> dict:
    data = load_torch(path, mmap, trust)
    if "model_state" in data:  # pycls
        return {"model": data["model_state"], "__author__": "pycls", "matching_heuristics": True}
    if "model" in data:
        return data
    return {"model": data.get("state_dict", data)}


def _read_safetensors(path: str) -> dict:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            info = file.metadata() or {}
            data = {"model": {name: file.get_tensor(name) for name in file.keys()}}  # noqa: SIM118
        data.update({key: info[key] if key == "cfg" else json.loads(info[key]) for key in INFORMATION if key in info})
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path} is no safetensors file or is damaged: {error}.") from error
    return data


def _weight(path: str, name: str, value):
    """A tensor or an array of numbers; numbers of NumPy become arrays without dimensions."""
    if not isinstance(name, str):
        raise CheckpointError(f"{path} holds no state dict: the name {name!r} is no text.")
    if isinstance(value, torch.Tensor):
        return value
    if not isinstance(value, (np.ndarray, np.generic)):
        raise CheckpointError(f"{path} holds no state dict: {name} is no tensor.")
    if value.dtype.str[1:] not in ARRAY_CODES:
        raise CheckpointError(f"{path} holds no state dict: {name} is an array of {value.dtype}, not of numbers.")
    return np.asarray(value)


def read_weights(path: str, trust: bool = False) -> dict:
    """
    Read a local weight file as data, on the CPU.

    Args:
        path: ``.pkl`` (Detectron2's zoo, Caffe2; NumPy arrays only), ``.safetensors``, anything else: PyTorch.
        trust: let the file run whatever code it holds.

    Returns:
        A dict with "model" (name -> tensor or array) and what else the file holds; "matching_heuristics" marks files
        whose names Detectron2 matches by their endings.

    Raises:
        CheckpointError: the file is missing or damaged, holds no weights, or objects that could run code.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: there is no such weight file.")
    if path.endswith(".pkl"):
        data = _read_pickle(path, trust)
    elif path.endswith(".safetensors"):
        data = _read_safetensors(path)
    else:
        data = _read_torch(path, trust=trust)
    if not isinstance(data["model"], dict) or not data["model"]:
        raise CheckpointError(f"{path} holds no state dict: it has no dict of names and tensors.")
    data["model"] = {name: _weight(path, name, value) for name, value in data["model"].items()}
    return data


def read_extra(path: str) -> dict:
    """
    What a checkpoint of this package holds besides weights (cfg, class_names, iteration, ...), quickly.

    Args:
        path: of a local file; nothing is read of it before a ?sha256=DIGEST that follows is found right.

    Returns:
        A dict; empty for formats that never carry it.

    Raises:
        CheckpointError: the file is missing, damaged, or not the one that the digest says.
    """
    path = local_file(path)
    if path.endswith(".safetensors"):
        data = _read_safetensors(path)
    elif zipfile.is_zipfile(path):
        data = _read_torch(path, mmap=True)
    else:
        return {}
    return {key: value for key, value in data.items() if key != "model"}


def read_checkpoint_info(path: str):
    """
    The config and the class names that travel in a checkpoint of this package; its path as for `read_extra`.

    Returns:
        (config as YAML text or None, class names or None)

    Raises:
        CheckpointError: the file is missing, damaged, or not the one that the digest says.
    """
    extra = read_extra(path)
    return extra.get("cfg"), extra.get("class_names")


def _is_full(error: Optional[BaseException]) -> bool:
    """True if the disk or the quota was full; torch.save may hide that behind a RuntimeError."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


def write_checkpoint_file(path: str, write: Callable) -> None:
    """
    Write a file whole or not at all.

    Args:
        path: the file to create or replace.
        write: called with the open binary file.

    Raises:
        CheckpointError: no space left; what was at ``path`` before is intact.
    """
    try:
        with written_whole(path) as temporary, open(temporary, "wb") as file:
            write(file)
    except Exception as error:
        if _is_full(error):
            raise CheckpointError(
                f"no space left on the device to write {path}; earlier files are intact: free some space, "
                "then go on with --resume."
            ) from error
        raise


def save_safetensors(path: str, state_dict: dict, cfg: Optional[str] = None, **lists) -> None:
    """
    Save weights as a safetensors file, and optionally what a checkpoint of this package says beside them: the config
    (YAML text) and the lists ``class_names``, ``category_ids`` and ``stuff_names``.

    Raises:
        CheckpointError: no space left.
    """
    from safetensors.torch import save

    info = {}
    if cfg is not None:
        info["cfg"] = cfg
    info.update({key: json.dumps(list(values)) for key, values in lists.items() if values is not None})
    # The format wants every tensor dense and in memory of its own.
    tensors = {k: v.detach().cpu().clone(memory_format=torch.contiguous_format) for k, v in state_dict.items()}
    write_checkpoint_file(path, lambda file: file.write(save(tensors, metadata=info)))
