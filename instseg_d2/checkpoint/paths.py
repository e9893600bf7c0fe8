"""Paths of weight files, which may end in a query like those of URLs."""

import hashlib
import os
import re

from ..errors import CheckpointError
from .identify import require_file

__all__ = ["check_sha256", "local_file", "split_query"]


def split_query(path) -> tuple[str, dict[str, str]]:
    """
    Split a path from its query (``?matching_heuristics=True``, ``?sha256=DIGEST``, or both joined by &).

    Raises:
        CheckpointError: the query is anything else.
    """
    path, _, query = os.fspath(path).partition("?")
    options = dict(part.partition("=")[::2] for part in query.split("&") if part)
    known = {"matching_heuristics": "True", "sha256": "[0-9a-fA-F]{64}"}
    for key, value in options.items():
        if not re.fullmatch(known.get(key, "$^"), value):
            raise CheckpointError(
                f"{path}?{query}: only ?matching_heuristics=True and ?sha256=64 HEXADECIMAL DIGITS may follow a path."
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


def local_file(path) -> str:
    """
    The path of a local file, without the query.

    Raises:
        CheckpointError: there is no such file, its SHA-256 differs from the query's, or the query is invalid.
    """
    path, options = split_query(path)
    require_file(path)
    if "sha256" in options:
        check_sha256(path, options["sha256"])
    return path
