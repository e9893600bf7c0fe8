"""Reading and writing weight files without running code that they might contain, and never half a file."""

import errno
import hashlib
import json
import os
import pickle
import re
import zipfile
from typing import Callable, Optional

import torch

from ..files import written_whole

__all__ = [
    "CheckpointError",
    "check_sha256",
    "read_checkpoint_info",
    "read_extra",
    "read_weights",
    "save_safetensors",
    "split_query",
    "write_checkpoint_file",
]

# What a checkpoint of this package says beside its weights: a text, and lists.
INFORMATION = ("cfg", "class_names", "category_ids", "stuff_names")
# What NumPy arrays and plain containers need, under the module names of Python 2 and 3 and of NumPy 1 and 2.
_SAFE_PICKLE_NAMES = {
    "numpy": {"dtype", "ndarray"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.numeric": {"_frombuffer"},
    "numpy._core.numeric": {"_frombuffer"},
    "collections": {"OrderedDict"},
    "_codecs": {"encode"},
    "builtins": {"bytearray", "complex", "frozenset", "set", "slice"},
    "__builtin__": {"bytearray", "complex", "frozenset", "set", "slice"},
}


class CheckpointError(ValueError):
    """A weight file that cannot be read, written or used for this model; the message names it and says why."""


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles NumPy arrays and builtin containers and refuses everything else."""

    def find_class(self, module, name):
        if name in _SAFE_PICKLE_NAMES.get(module, ()):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}")


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


def _read_pickle(path: str, trust: bool = False) -> dict:
    unpickler = pickle.Unpickler if trust else _ArrayUnpickler
    try:
        with open(path, "rb") as file:
            data = unpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        if "refers to" in str(error):
            raise _refused(path, str(error)) from None
        raise CheckpointError(f"{path} is no pickle file or is damaged: {error}.") from error
    except (EOFError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        raise CheckpointError(f"{path} is no pickle file or is damaged: {error}.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__} where a dict of weights was expected.")
    if "model" in data and "__author__" in data:  # Detectron2's model zoo
        return data
    # Caffe2 and Detectron: detection models keep their weights under "blobs", ImageNet models at the top.
    blobs = {name: value for name, value in data.get("blobs", data).items() if not name.endswith("_momentum")}
    return {"model": blobs, "__author__": "Caffe2", "matching_heuristics": True}


def _read_torch(path: str, mmap: bool = False, trust: bool = False) -> dict:
    try:
        data = torch.load(path, map_location="cpu", weights_only=not trust, mmap=mmap)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        if name:
            raise _refused(path, f"it refers to {name[1]}") from None
        raise CheckpointError(f"{path} is no PyTorch checkpoint or is damaged.") from error
    except (EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is no PyTorch checkpoint or is damaged.") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds a {type(data).__name__} where a dict of weights was expected.")
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
    except SafetensorError as error:
        raise CheckpointError(f"{path} is no safetensors file or is damaged: {error}.") from error
    data.update({key: info[key] if key == "cfg" else json.loads(info[key]) for key in INFORMATION if key in info})
    return data


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
    model = data["model"]
    odd = next((k for k, v in model.items() if not hasattr(v, "shape")), None) if isinstance(model, dict) else "model"
    if odd is not None or not model:
        raise CheckpointError(f"{path} holds no state dict: {odd or 'it'} is no tensor.")
    return data


def read_extra(path: str) -> dict:
    """
    What a checkpoint of this package holds besides weights (cfg, class_names, iteration, ...), quickly.

    Returns:
        A dict; empty for formats that never carry it.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    if not os.path.isfile(path):
        raise CheckpointError(f"{path}: there is no such weight file.")
    if path.endswith(".safetensors"):
        data = _read_safetensors(path)
    elif zipfile.is_zipfile(path):
        data = _read_torch(path, mmap=True)
    else:
        return {}
    return {key: value for key, value in data.items() if key != "model"}


def read_checkpoint_info(path: str):
    """
    The config and the class names that travel in a checkpoint of this package.

    Returns:
        (config as YAML text or None, class names or None)

    Raises:
        CheckpointError: the file is missing or damaged.
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
