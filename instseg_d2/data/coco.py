"""Registers COCO-format data sets, and checks them when they are first loaded."""

import codecs
import difflib
import hashlib
import locale
import logging
import os
import re
from collections import Counter
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from ..errors import DatasetError
from ..files import cache_folder, write_json
from .coco_check import Report, examine
from .coco_file import renumber
from .faults import DROPPED, ERROR, NOTE, REPAIRED, WARNING, listed

__all__ = [
    "DatasetError",
    "check_same_classes",
    "class_names",
    "make_names_unique",
    "register_coco",
    "register_from_environment",
]

logger = logging.getLogger(__name__)


def _log_faults(report: Report, json_file: str, image_root: str) -> None:
    """
    Log what training does about the faults of a file: a warning for what it drops, a warning for faults that it
    ignores, and an info line for the rest.

    Raises:
        DatasetError: the file is unusable.
    """
    errors, drops, warnings, rest = (
        [row for row in report.findings if row.severity in kinds]
        for kinds in ((ERROR,), (DROPPED,), (WARNING,), (NOTE, REPAIRED))
    )
    command = f"python -m instseg_d2.check_data {json_file} {image_root} --fix"
    if report.readings:
        command += f" --assume {' '.join(report.readings)}"
    if errors:
        remedy = f" ({command} writes a clean copy)" if report.content["annotations"] else ""
        raise DatasetError(f"{json_file}: {listed([*errors, *drops])}{remedy}.")
    if drops:
        count = sum(row.count for row in drops)
        logger.warning(f"{json_file}: {count} of {report.annotations} annotations are dropped; {listed(drops)}.")
    if warnings:
        logger.warning(f"{json_file} is used despite its faults: {listed(warnings)} ({command} writes a clean copy).")
    if rest:
        logger.info(f"{json_file}: {listed(rest)}.")


def make_names_unique(categories: list) -> bool:
    """Append the id to names shared by several categories, in place, to keep their results apart."""
    names = Counter(category["name"] for category in categories)
    for category in categories:
        if names[category["name"]] > 1:
            category["name"] = f"{category['name']} ({category['id']})"
    return len(names) < len(categories)


def _is_misread(path: str) -> bool:
    """True if Detectron2, which uses the locale's encoding, would misread a JSON file."""
    if codecs.lookup(locale.getpreferredencoding(False)).name == "utf-8":
        return False
    return not Path(path).read_bytes().isascii()


class CocoSource:
    """
    The loader that the catalog calls: it checks the file, then reads it with Detectron2's ``load_coco_json``.

    If the check drops, fills in or renames anything, a corrected copy in the cache folder is read instead and becomes
    the metadata's ``json_file``, so that training and COCOeval see the same annotations. The copy has new ids where
    the original ones are not 64-bit integers; the metadata's ``original_ids`` {"images": {our id: theirs},
    "categories": ...} keep the original ones for writing results.
    """

    def __init__(self, name: str, json_file: str, image_root: str, prepare=None):
        self.name = name
        self.json_file = os.path.abspath(os.path.expanduser(json_file))
        self.image_root = os.path.abspath(os.path.expanduser(image_root))

        self._prepare = prepare
        self._checked = (None, None, {})  # state of the file, path to read, original ids

    def _checked_file(self) -> tuple:
        """
        The path to read (the file itself or its corrected copy) and the original ids. The file is checked again only
        if it has changed.
        """
        state = None
        if os.path.isfile(self.json_file):
            status = os.stat(self.json_file)
            state = (status.st_size, status.st_mtime_ns)
            if self._checked[0] == state and os.path.isfile(self._checked[1]):
                return self._checked[1:]
        report = examine(self.json_file, self.image_root, clean=False)
        _log_faults(report, self.json_file, self.image_root)
        renamed, originals = make_names_unique(report.content["categories"]), renumber(report.content)
        path = self.json_file
        changed = renamed or originals or any(row.severity in (DROPPED, REPAIRED) for row in report.findings)
        if changed or _is_misread(self.json_file):
            digest = hashlib.sha1(repr((self.json_file, self.image_root, state)).encode()).hexdigest()[:16]
            path = str(cache_folder("checked", f"{Path(self.json_file).stem}-{digest}.json"))
            write_json(path, report.content)
        self._checked = (state, path, originals)
        return path, originals

    def report(self) -> Report:
        """What ``instseg check`` finds; reads every image. Raises DatasetError if the file is unusable."""
        if self._prepare is not None:
            self._prepare()
        return examine(self.json_file, self.image_root)

    def __call__(self) -> list:
        if self._prepare is not None:
            self._prepare()
        checked, originals = self._checked_file()
        metadata = MetadataCatalog.get(self.name)
        for key, value in (("json_file", checked), ("original_ids", originals)):
            if metadata.get(key) != value:
                if key in metadata.as_dict():
                    delattr(metadata, key)  # Detectron2's metadata cannot be overwritten
                metadata.set(**{key: value})
        return load_coco_json(checked, self.image_root, self.name)


def register_coco(name: str, json_file: str, image_root: str, prepare=None) -> None:
    """
    Register a COCO instances file under ``name``; nothing is read before the first ``DatasetCatalog.get(name)``.

    Loading raises DatasetError for a missing or faulty file (see `examine`). Metadata: evaluator_type "coco",
    json_file, image_root; loading adds thing_classes and may replace json_file by a corrected copy. A name registered
    by this function can be registered again.

    Args:
        name: name in Detectron2's catalogs.
        json_file: the COCO instances file.
        image_root: folder of the images.
        prepare: optional callable without arguments that creates the files; called before each load.

    Raises:
        DatasetError: other code registered the name.
    """
    source = CocoSource(name, str(json_file), str(image_root), prepare)
    if name in DatasetCatalog:
        if not isinstance(DatasetCatalog[name], CocoSource):
            raise DatasetError(f"a data set named {name} is already registered; choose another name for {json_file}.")
        DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
    DatasetCatalog.register(name, source)
    MetadataCatalog.get(name).set(evaluator_type="coco", json_file=source.json_file, image_root=source.image_root)


def require_registered(name: str) -> None:
    """Raise DatasetError, with similar names, unless a data set of this name is registered."""
    if name in DatasetCatalog:
        return
    near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3, cutoff=0.5)
    hint = f" (similar: {', '.join(near)})" if near else ""
    raise DatasetError(
        f"there is no data set named {name}{hint}; give your own annotations and images, or set INSTSEG_DATASETS to a "
        "folder with <name>/train.json, <name>/val.json and <name>/images/."
    )


def class_names(name: str) -> list:
    """
    The class names of a registered data set, by ascending category id; loads the set if necessary.

    Raises:
        DatasetError: the name is not registered, the file is faulty, or the set has no class names.
    """
    require_registered(name)
    metadata = MetadataCatalog.get(name)
    if not metadata.get("thing_classes"):
        DatasetCatalog.get(name)
    if not metadata.get("thing_classes"):
        raise DatasetError(f"the data set {name} has no class names (thing_classes in its metadata).")
    return list(metadata.thing_classes)


def class_difference(first: list[str], second: list[str], first_name: str, second_name: str) -> str:
    """The differences between two lists of classes, or in their order, in words; empty if they are equal."""
    only_first, only_second = ([c for c in a if c not in b] for a, b in ((first, second), (second, first)))
    parts = [
        f"only {name} has {', '.join(map(repr, classes))}"
        for name, classes in ((first_name, only_first), (second_name, only_second))
        if classes
    ]
    if not parts and first != second:
        place = next((i for i, (a, b) in enumerate(zip(first, second)) if a != b), min(len(first), len(second)))
        a, b = (names[place] if place < len(names) else "nothing" for names in (first, second))
        parts = [f"in the order of category ids, class {place + 1} is {a!r} in {first_name} and {b!r} in {second_name}"]
    return "; ".join(parts)


def check_same_classes(train_name: str, val_name: str) -> None:
    """
    Raises:
        DatasetError: the two sets differ in their classes or in the order of these; the message says where.
    """
    difference = class_difference(class_names(train_name), class_names(val_name), train_name, val_name)
    if difference:
        raise DatasetError(f"{train_name} and {val_name} must have the same categories: {difference}.")


def register_from_environment() -> list:
    """
    Register the data sets under ``$INSTSEG_DATASETS``; files are listed, not read.

    ``<name>/train.json`` and ``<name>/val.json`` become ``<name>_train`` and ``<name>_val``,
    ``<name>/train_<variant>.json`` becomes ``<name>_<variant>_train`` and so on, all over ``<name>/images/``.

    Returns:
        list[str]: the names registered.
    """
    root = os.environ.get("INSTSEG_DATASETS")
    if not root:
        return []
    folder = Path(root).expanduser()
    if not folder.is_dir():
        logger.warning(f"INSTSEG_DATASETS is {root}, which is not a folder; no data set is registered from it.")
        return []
    names = []
    for json_file in sorted(folder.glob("*/*.json")):
        match = re.fullmatch(r"(train|val)(?:_(.+))?", json_file.stem)
        if not match:
            continue
        split, variant = match.groups()
        name = "_".join(filter(None, (json_file.parent.name, variant, split)))
        try:
            register_coco(name, json_file, json_file.parent / "images")
        except DatasetError as error:
            logger.warning(str(error))
            continue
        names.append(name)
    return names


def class_information(dataset_name: str) -> dict:
    """
    The data set's ``class_names`` and, if known, its original ``category_ids`` (both by contiguous class index) and the
    ``stuff_names`` of its semantic labels.
    """
    names = class_names(dataset_name)
    ids = MetadataCatalog.get(dataset_name).get("thing_dataset_id_to_contiguous_id")
    information = {"class_names": names}
    if ids:
        originals = MetadataCatalog.get(dataset_name).get("original_ids", {}).get("categories", {})
        information["category_ids"] = [originals.get(i, i) for i in sorted(ids, key=ids.get)]
    stuff_names = MetadataCatalog.get(dataset_name).get("stuff_classes")
    if stuff_names:
        information["stuff_names"] = list(stuff_names)
    return information
