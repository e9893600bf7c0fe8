"""Explains missing image files, by trying the usual reasons on the files of the folder."""

import os
import unicodedata
from collections.abc import Sequence
from urllib.parse import unquote

from .images import image_suffixes

__all__ = ["images_below", "near_misses", "reasons"]

_MAX_FILES = 1_000_000  # files of a folder to look at


def images_below(root: str) -> list[str]:
    """The image files below a folder, relative to it, with / between the parts."""
    suffixes, files = image_suffixes(), []
    for folder, _, names in os.walk(root):
        start = os.path.relpath(folder, root).replace(os.sep, "/")
        names = [name for name in names if os.path.splitext(name)[1].lower() in suffixes]
        files += names if start == "." else [f"{start}/{name}" for name in names]
        if len(files) > _MAX_FILES:
            break
    return sorted(files)


def _slashes(name: str) -> str:
    return name.replace("\\", "/")


def _one_form(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _plain(name: str) -> str:
    return _one_form(unquote(_slashes(name.strip()))).casefold()


def _last(name: str) -> str:
    return _plain(name).rsplit("/", 1)[-1]


def _stem(name: str) -> str:
    return os.path.splitext(_plain(name))[0]


def _last_stem(name: str) -> str:
    return os.path.splitext(_last(name))[0]


# A reason; the functions applied to a listed name and to a file of the folder before they are compared.
_REASONS = (
    ("with / instead of \\", _slashes, str),
    ("with %20 and the like decoded", unquote, str),
    ("without spaces around the name", str.strip, str),
    ("in another Unicode form (NFC, NFD)", _one_form, _one_form),
    ("with other capital letters", str.casefold, str.casefold),
    ("written a little differently", _plain, _plain),
    ("with another suffix", _stem, _stem),
    ("in another folder", _last, _last),
    ("in another folder and with another suffix", _last_stem, _last_stem),
)


def near_misses(missing: Sequence[str], root: str) -> list[tuple[str, int, str]]:
    """
    Reasons for names that are missing in ``root``: [(reason, number of names, "first name -> existing file")], most
    frequent first. A name counts only for the first reason that yields exactly one file.
    """
    rows, missing = [], list(missing)
    files = images_below(root) if missing else []
    for reason, of_listed, of_file in _REASONS if files else ():
        there = {}
        for file in files:
            key = of_file(file)
            there[key] = None if key in there else file
        found = {name: there[of_listed(name)] for name in missing if there.get(of_listed(name))}
        if found:
            name, file = next(iter(found.items()))
            rows.append((reason, sum(name in found for name in missing), f"{name} -> {file}"))
            missing = [name for name in missing if name not in found]
    return sorted(rows, key=lambda row: -row[1])


def reasons(rows: list) -> str:
    """The rows as the end of a sentence; empty without rows."""
    return "".join(f"; {count} would be found {reason} ({example})" for reason, count, example in rows)
