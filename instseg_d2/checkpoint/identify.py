"""Recognises the format of a weight file by its first bytes, or tells what the file is instead."""

import os
import re
import tarfile
import zipfile
from typing import Optional

from ..errors import CheckpointError

__all__ = ["damaged", "format_of", "other_format", "require_file", "verify_checksums"]

WEIGHT_SUFFIXES = (".pth", ".safetensors", ".pkl", ".pt", ".bin", ".ckpt")
# PyTorch before 1.6 pickled this number first.
_OLD_TORCH = re.compile(rb"\x80[\x02-\x05](?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.", re.S)
_SAFETENSORS = re.compile(rb".{5}\0\0\0\{", re.S)  # the length of a header in JSON, then the header
# First bytes of files without weights -> what they are.
_OTHERS = {
    b"version https://git-lfs": "a Git LFS pointer, not the file itself: fetch that with `git lfs pull`",
    b"\x1f\x8b": "a gzip archive: unpack it",
    b"BZh": "a bzip2 archive: unpack it",
    b"\xfd7zXZ": "an xz archive: unpack it",
    b"(\xb5/\xfd": "a Zstandard archive: unpack it",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"Rar!": "a RAR archive: unpack it",
    b"\x89HDF": "an HDF5 file, as Keras writes them, not a PyTorch file",
    b"\x93NUMPY": "a single NumPy array, not a dict of weights",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}
_AGAIN = "copy or download it again"
_EXPORTED = "an exported model: `instseg predict --model` runs it"


def damaged(path: str, reason: str) -> CheckpointError:
    """The error for a damaged file."""
    return CheckpointError(f"{path} is damaged: {reason}; {_AGAIN}.")


def require_file(path: str) -> None:
    """
    Raises:
        CheckpointError: there is no file at ``path``; for a folder it lists the weight files in it.
    """
    if os.path.isdir(path):
        found = sorted(name for name in os.listdir(path) if name.endswith(WEIGHT_SUFFIXES))
        shown = ", ".join(found[:4]) + (", ..." if len(found) > 4 else "")
        raise CheckpointError(f"{path} is a folder: give a weight file (it contains {shown or 'none'}).")
    if os.path.islink(path) and not os.path.exists(path):
        raise CheckpointError(f"{path} is a link to {os.readlink(path)}, which does not exist.")
    if not os.path.exists(path):
        raise CheckpointError(f"{path}: no such weight file.")
    if not os.path.isfile(path):
        raise CheckpointError(f"{path} is a device or pipe: give a file.")


def format_of(path: str) -> str:
    """
    "zip" (PyTorch), "old" (PyTorch before 1.6), "tar" (PyTorch's first), "safetensors" or "pickle".

    Raises:
        CheckpointError: there is no such file, it is truncated, or it is something else; the message says what.
    """
    require_file(path)
    if what := other_format(path):
        raise CheckpointError(f"{path} is {what}.")
    with open(path, "rb") as file:
        head = file.read(64)
    if _SAFETENSORS.match(head):
        return "safetensors"
    if head.startswith(b"PK"):
        _check_zip(path)
        return "zip"
    if tarfile.is_tarfile(path):
        with tarfile.open(path) as tar:
            names = tar.getnames()
        if "storages" not in names:
            raise CheckpointError(f"{path} is a tar archive: unpack it.")
        return "tar"
    if _OLD_TORCH.match(head):
        return "old"
    if head[:1] == b"\x80" or path.endswith(".pkl"):  # pickle's first protocols have no magic number
        return "pickle"
    if path.endswith(".onnx"):
        raise CheckpointError(f"{path} is {_EXPORTED}.")
    raise CheckpointError(f"{path} is not a PyTorch, safetensors or pickle file: it begins with {head[:12]!r}.")


def _check_zip(path: str) -> None:
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except Exception as error:  # zipfile passes on whatever reading at wrong offsets raises
        raise damaged(path, f"its end is missing (it has {os.path.getsize(path)} bytes)") from error
    inside = {name.partition("/")[2] for name in names}
    if "archive_format" in inside:
        raise CheckpointError(f"{path} is {_EXPORTED}.")
    if "data.pkl" not in inside:
        shown = ", ".join(names[:3]) or "nothing"
        raise CheckpointError(f"{path} is a zip archive, but not from PyTorch (it contains {shown}): unpack it.")


def verify_checksums(path: str) -> None:
    """
    Verify the checksums of a zip file, which PyTorch does not do.

    Raises:
        CheckpointError: a checksum differs.
    """
    with zipfile.ZipFile(path) as file:
        if not any(member.CRC for member in file.infolist()):  # torch.serialization.set_crc32_options(False)
            return
        try:
            wrong = file.testzip()
        except Exception as error:
            raise damaged(path, f"it cannot be read to its end ({error})") from error
    if wrong is not None:
        raise damaged(path, f"the checksum of {wrong} in it is wrong")


def other_format(path: str) -> Optional[str]:
    """What a file is instead of weights: empty, zeros, an archive, a picture or text; None if it may be weights."""
    with open(path, "rb") as file:
        head = file.read(4096)
    if not head:
        return f"empty: {_AGAIN}"
    if _SAFETENSORS.match(head):  # the header's length may look like any first bytes
        return None
    if not head.strip(b"\0"):
        return f"damaged: it begins with zeros, so it was never completely written; {_AGAIN}"
    for mark, what in _OTHERS.items():
        if head.startswith(mark):
            return what
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").decode("latin1")
    if re.match(r"<!doctype html|<html|<head|<script|<body", text, re.I):
        title = re.search(r"<title[^>]*>([^<]*)", text, re.I)
        named = f" ({' '.join(title[1].split())[:80]})" if title and title[1].strip() else ""
        return f"a web page{named}, not the file itself: check its download address"
    if text.startswith("<"):
        return "an XML text, not the file itself: check its download address"
    if text[:1] in ("{", "["):
        return "a JSON text, not the file itself"
    return None
