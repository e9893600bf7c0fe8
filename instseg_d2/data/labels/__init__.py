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
from .common import CATEGORIES, Reading, Writer
from .label_studio import LabelStudioWriter

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

NO_OBJECT = ("annotations: none", "annotations: none can be used")  # images alone can be converted


def _json_format(path: Path) -> Optional[str]:
    content = read_json(path)[0]
    return next((name for name, fits in _CONTENTS.items() if fits(content)), None)


def recognise(source: Path) -> tuple[str, Path]:
    """
    The format of a file or folder, by its content, and the path to read: the only JSON file of a folder, if it is
    COCO's or VIA's.

    Raises:
        DatasetError: it is none of the formats, or could be several.
        FileNotFoundError: there is no such file or folder.
    """
    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file or folder")
    if source.is_file() and source.suffix == ".json":
        found = _json_format(source)
        if found:
            return found, source
    elif voc.find_folders(source):
        return "voc", source
    elif yolo.find_settings(source):
        return "yolo", source
    elif source.is_dir():
        files = [(_json_format(file), file) for file in sorted(source.glob("*.json"))[:100]]
        found = [pair for pair in files if pair[0]]
        if any(name == "labelme" for name, _ in found) or any(
            _json_format(file) == "labelme" for file in sorted(source.glob("*/**/*.json"))[:100]
        ):
            return "labelme", source
        if len(found) == 1:
            return found[0]
        if found:
            raise DatasetError(f"{source} has several label files, such as {found[0][1].name}: name one of them.")
    raise DatasetError(
        f"{source} is not recognised as labels of COCO, YOLO (a folder with data.yaml), LabelMe, VIA or Pascal VOC (a "
        "folder with SegmentationObject and SegmentationClass); if it is one of them, say so with --from."
    )


def default_images(source: Path, name: str) -> Path:
    """The folder where a data set has its images by custom."""
    root = yolo.find_root(source) if name == "yolo" else source if source.is_dir() else source.parent
    for folder in {"voc": ("JPEGImages",), "labelme": ()}.get(name, ("images",)):
        if (root / folder).is_dir():
            return root / folder
    return root


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
    rows = [row for row in found.rows() if row.what not in NO_OBJECT]
    if any(row.severity == ERROR for row in rows):
        raise DatasetError(f"{source}: {listed([row for row in rows if row.severity in (ERROR, DROPPED)])}.")
    for category in content["categories"]:
        category["name"] = category["name"].encode("utf-8", "replace").decode()  # half a surrogate pair in JSON
    if make_names_unique(content["categories"]):
        reading.notes["classes that share a name: their id is added to it"] += 1
    root = reading.source if reading.source.is_dir() else reading.source.parent
    if name != "coco" and not (root / CATEGORIES).is_file():
        reading.notes["classes numbered from 1, since only names are known"] = len(content["categories"])
    content["categories"].sort(key=lambda entry: id_order(entry["id"]))
    notes = [f"{what}: {count}" for what, count in reading.notes.items()]
    for severity in (DROPPED, WARNING):
        chosen = [row for row in rows if row.severity == severity]
        if chosen:
            notes.append(f"{'left out' if severity == DROPPED else 'kept, but look at them'}: {listed(chosen)}")
    return content, notes
