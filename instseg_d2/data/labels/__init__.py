"""
Labels of other programs, read as COCO content and written from it: one module a format.

Masks are kept to the pixel. What a format cannot hold is changed or left out, and counted.
"""

import os
from pathlib import Path
from typing import Optional

from ...errors import DatasetError
from ..coco import make_names_unique
from ..coco_check import examine_content
from ..coco_file import id_order, read_json
from ..faults import DROPPED, ERROR, WARNING, Findings, listed
from . import coco, labelme, via, voc, yolo
from .common import Reading, known_categories
from .label_studio import LabelStudioWriter
from .writer import Writer

__all__ = ["WRITERS", "Writer", "default_images", "read_labels", "recognise"]

READERS = {"labelme": labelme.read, "via": via.read, "voc": voc.read, "yolo": yolo.read}
WRITERS: dict[str, type[Writer]] = {
    "coco": coco.CocoWriter,
    "yolo": yolo.YoloWriter,
    "labelme": labelme.LabelmeWriter,
    "via": via.ViaWriter,
    "voc": voc.VocWriter,
    "label-studio": LabelStudioWriter,
}
_CONTENTS = {"coco": coco.is_coco, "labelme": labelme.is_labelme, "via": via.is_via}

_FILE_NAMES = {"coco": coco.file_names, "via": via.file_names}

# Faults of a training set alone: images without objects can be converted, and entries of one file are merged.
HARMLESS = ("annotations: none", "annotations: none can be used", "images: file listed twice")


def _json_format(path: Path) -> Optional[str]:
    content = read_json(path)[0]
    return next((name for name, fits in _CONTENTS.items() if fits(content)), None)


def _json_formats(files) -> tuple[list[tuple[str, Path]], Optional[DatasetError]]:
    """The format of each file that has one, and the first fault; only the first 100 files are read."""
    found, fault = [], None
    for file in sorted(file for file in files if file.is_file())[:100]:
        try:
            found.append((_json_format(file), file))
        except DatasetError as error:
            fault = fault or error
    return [pair for pair in found if pair[0]], fault


def _only(found: list[tuple[str, Path]], source: Path) -> tuple[str, Path]:
    if len(found) > 1:
        raise DatasetError(f"{source} has several label files, such as {found[0][1].name}: name one of them.")
    return found[0]


def _recognise_folder(source: Path) -> Optional[tuple[str, Path]]:
    found, fault = _json_formats(source.glob("*.json"))
    if any(name == "labelme" for name, _ in found):
        return "labelme", source
    if found:
        return _only(found, source)
    if yolo.has_labels(source):
        return "yolo", source
    deeper, deeper_fault = _json_formats(source.glob("*/**/*.json"))
    if any(name == "labelme" for name, _ in deeper):
        return "labelme", source
    if (yolo.find_settings(source) or (None, None))[1]:  # a YAML file, to be read or reported
        return "yolo", source
    if fault or deeper_fault:
        raise fault or deeper_fault
    return None


def recognise(source: Path, name: Optional[str] = None) -> tuple[str, Path]:
    """
    The format of a file or folder, by its content, and the path to read: the only JSON file of a folder, if it is
    COCO's or VIA's.

    Args:
        name: of the format, if it is known.

    Raises:
        DatasetError: it is none of the formats, or could be several.
        FileNotFoundError: there is no such file or folder.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if name in _FILE_NAMES and source.is_dir():
        found, fault = _json_formats(source.glob("*.json"))
        found = [pair for pair in found if pair[0] == name]
        if not found:
            raise fault or DatasetError(f"{source}: no JSON file in this folder has {name} labels.")
        return _only(found, source)
    if name is not None:
        return name, source
    if source.is_file() and source.suffix == ".json":
        name = _json_format(source)
        if name:
            return name, source
    elif voc.find_folders(source):
        return "voc", source
    elif source.is_dir():
        found = _recognise_folder(source)
        if found:
            return found
    elif yolo.find_settings(source):
        return "yolo", source
    raise DatasetError(
        f"{source} is not recognised as labels of COCO, YOLO (a folder with data.yaml), LabelMe, VIA or Pascal VOC (a "
        "folder with SegmentationObject and SegmentationClass); if it is one of them, say so with --from."
    )


def default_images(source: Path, name: str) -> Path:
    """The folder where a data set has its images: by the files that it lists, else by custom."""
    root = yolo.find_root(source) if name == "yolo" else source
    root = root if root.is_dir() else root.parent
    customary = {"voc": "JPEGImages", "labelme": ""}.get(name, "images")
    folders = [folder for folder in dict.fromkeys((root / customary, root)) if folder.is_dir()]
    if len(folders) > 1 and name in _FILE_NAMES:
        names = [str(file) for file in _FILE_NAMES[name](read_json(source)[0])[:100]]
        return max(folders, key=lambda folder: sum(os.path.isfile(folder / file) for file in names))
    return folders[0]


def _merge_repeated(content: dict, reading: Reading) -> None:
    """Give the objects of all entries of one file to the first."""
    first: dict[str, dict] = {}
    same = {}
    for image in content["images"]:
        entry = first.setdefault(os.path.normpath(image["file_name"]), image)
        sizes = [f"{e['width']} x {e['height']}" for e in (entry, image)]
        if sizes[0] != sizes[1]:
            raise DatasetError(
                f"{reading.source}: {image['file_name']} is listed twice, as {sizes[0]} and as {sizes[1]} pixels; "
                "remove one of the entries."
            )
        same[image["id"]] = entry["id"]
        if entry is not image:
            reading.note("entries of an image that is listed before: merged with it", image["file_name"])
    content["images"] = list(first.values())
    for annotation in content["annotations"]:
        annotation["image_id"] = same[annotation["image_id"]]


def read_labels(source, name: str, images_folder) -> tuple[dict, list[str]]:
    """
    The checked COCO content of a data set, and sentences on what was left out or looks wrong.

    Args:
        source: file or folder.
        name: of the format: "coco" or one of READERS.
        images_folder: the file names of images are relative to it.

    Raises:
        DatasetError: the data set is broken.
    """
    reading, found = Reading(source, images_folder), Findings()
    if not os.path.isdir(images_folder):
        raise DatasetError(f"{images_folder}: no such image folder.")
    content = coco.read(reading, found) if name == "coco" else READERS[name](reading)
    report = examine_content(content, str(source), str(images_folder), found, need_masks=False)
    content = report.content
    if name == "coco":
        coco.leave_out_other_sizes(content, reading, found)
    _merge_repeated(content, reading)
    rows = [row for row in found.rows() if row.what not in HARMLESS]
    if any(row.severity == ERROR for row in rows):
        raise DatasetError(f"{source}: {listed([row for row in rows if row.severity in (ERROR, DROPPED)])}.")
    for category in content["categories"]:
        category["name"] = category["name"].encode("utf-8", "replace").decode()  # half a surrogate pair in JSON
    if make_names_unique(content["categories"]):
        reading.notes["classes that share a name: their id is added to it"] += 1
    root = reading.source if reading.source.is_dir() else reading.source.parent
    if name != "coco" and not known_categories(root):
        reading.notes["classes numbered from 1, since only names are known"] = len(content["categories"])
    content["categories"].sort(key=lambda entry: id_order(entry["id"]))
    notes = reading.sentences()
    for severity in (DROPPED, WARNING):
        chosen = [row for row in rows if row.severity == severity]
        if chosen:
            notes.append(f"{'left out' if severity == DROPPED else 'kept, but look at them'}: {listed(chosen)}")
    return content, notes
