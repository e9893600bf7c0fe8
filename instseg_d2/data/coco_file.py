"""Reads COCO instances files: their lists, entries and ids."""

import json
import math
import os
import re
from typing import Optional

from ..errors import DatasetError
from .faults import Findings

__all__ = ["Ids", "category_name", "id_order", "load_coco", "plain_ids", "read_json", "renumber", "valid_entries"]

NEEDED_KEYS = {
    "categories": ("id", "name"),
    "images": ("id", "file_name"),
    "annotations": ("image_id", "category_id"),
}


def read_json(path) -> tuple:
    """
    The content of a JSON file, and its encoding.

    Raises:
        DatasetError: it is not a JSON file.
    """
    try:
        with open(path, "rb") as file:
            text = file.read()
        return json.loads(text), json.detect_encoding(text)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not a JSON file ({error}).") from error


def load_coco(json_file: str, image_root: str, found: Findings) -> dict:
    """
    The content of a COCO instances file with the lists images, annotations and categories.

    Raises:
        DatasetError: the file or the image folder is missing, or the file is not a JSON or COCO file.
    """
    if not os.path.isfile(json_file):
        raise DatasetError(f"{json_file}: no such annotation file.")
    if not os.path.isdir(image_root):
        raise DatasetError(f"{image_root}: no such image folder (for {json_file}).")
    content, encoding = read_json(json_file)
    missing = [
        key for key in sorted(NEEDED_KEYS) if not (isinstance(content, dict) and isinstance(content.get(key), list))
    ]
    if missing:
        raise DatasetError(
            f"{json_file} is not a COCO file: it lacks the list{'s' * (len(missing) > 1)} "
            f"{', '.join(missing)} (needed: images, annotations, categories)."
        )
    if encoding != "utf-8":
        found.add("file: encoding other than plain UTF-8", encoding)
    return content


def category_name(name) -> Optional[str]:
    """The name of a category as text; numbers are converted, anything else gives None."""
    if isinstance(name, (int, float)) and not isinstance(name, bool):
        return str(name)
    return name if isinstance(name, str) else None


def _is_id(value) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _named(entry: dict, key: str, where: str, found: Findings) -> bool:
    """True if an image has a file name, or a category a name; a numeric name becomes text, in place."""
    if key == "images":
        if not isinstance(entry["file_name"], str):
            found.add("images: file_name that is not text", f"{where}: {entry['file_name']!r}")
            return False
        return True
    text = category_name(entry["name"])
    if text is None:
        found.add("categories: name that is not text", f"{where}: {entry['name']!r}")
    elif text != entry["name"]:
        found.add("categories: name that is a number", f"{where}: {text}")
        entry["name"] = text
    return text is not None


def valid_entries(content: dict, key: str, found: Findings) -> list:
    """The entries with all required keys and, for images and categories, a name and a unique id."""
    kept, seen = [], set()
    for number, entry in enumerate(content[key]):
        where = f"entry {number} of {key}"
        absent = [k for k in NEEDED_KEYS[key] if not isinstance(entry, dict) or k not in entry]
        if absent:
            found.add(f"{key}: no {absent[0]}", where)
            continue
        if key != "annotations":
            if not _named(entry, key, where, found):
                continue
            if not _is_id(entry["id"]):
                found.add(f"{key}: id that is neither number nor text", f"{where}: {entry['id']!r}")
                continue
            if entry["id"] in seen:
                found.add(f"{key}: duplicate id", f"{where}: id {entry['id']}")
                continue
            seen.add(entry["id"])
        kept.append(entry)
    return kept


def _number_of(identifier):
    """The integer that an id stands for: 12 for 12.0, "12" and "0012"; other ids are returned unchanged."""
    if isinstance(identifier, float) and identifier.is_integer():
        return int(identifier)
    if isinstance(identifier, str) and re.fullmatch(r"\s*[+-]?[0-9]{1,40}(\.0*)?\s*", identifier):
        return int(identifier.split(".")[0])
    return identifier


class Ids:
    """The ids of a list. References may spell them differently: 12 as "12" or 12.0."""

    def __init__(self, entries: list):
        self._exact = {entry["id"]: entry["id"] for entry in entries}
        self._numbers = {}
        for identifier in self._exact:
            number = _number_of(identifier)
            self._numbers[number] = None if number in self._numbers else identifier  # None: ambiguous

    def find(self, value):
        """The id in the list that ``value`` stands for; None if there is none or more than one."""
        if not _is_id(value):
            return None
        found = self._exact.get(value)
        return self._numbers.get(_number_of(value)) if found is None else found


def id_order(identifier) -> tuple:
    """Sort key of ids: numbers by value, then texts."""
    number = _number_of(identifier)
    return isinstance(number, str), number, str(identifier)


def plain_ids(entries: list) -> bool:
    """True if all ids are 64-bit integers."""
    return all(type(entry["id"]) is int and abs(entry["id"]) < 1 << 63 for entry in entries)


def renumber(content: dict) -> dict:
    """
    Renumber images and categories from 1, in place, unless their ids are all 64-bit integers. NumPy would turn other
    ids into floats or texts, and COCOeval would lose objects.

    Returns:
        {"images": {our id: theirs}, "categories": ...} for the lists that were renumbered.
    """
    originals = {}
    for key, reference in (("images", "image_id"), ("categories", "category_id")):
        if plain_ids(content[key]):
            continue
        ids = sorted((entry["id"] for entry in content[key]), key=id_order)
        ours = {identifier: number for number, identifier in enumerate(ids, start=1)}
        for entry in content[key]:
            entry["id"] = ours[entry["id"]]
        for annotation in content["annotations"]:
            annotation[reference] = ours[annotation[reference]]
        originals[key] = {number: identifier for identifier, number in ours.items()}
    return originals
