"""
YOLO's segmentation labels, as Ultralytics reads them: labels/NAME.txt beside images/NAME.jpg, a line for each object:
its class from 0 and the corners x y of one polygon, as fractions of the image's sides; data.yaml names the classes.
"""

import os
from pathlib import Path

import yaml

from ...errors import DatasetError
from ...files import write_bytes
from ..missing import images_below
from ..segmentations import to_rle
from .common import BOXES, BRIDGED, EMPTY, JOINED, Reading, Writer, known_categories, read_text
from .geometry import bridged, has_overlaps, pieces, traced

__all__ = ["YoloWriter", "read"]

SLACK = 0.01  # by which a fraction may be above 1 or below 0, as in Ultralytics


def _class_names(root: Path, settings) -> list[str]:
    """The class names by index, from data.yaml, else from classes.txt (Label Studio)."""
    if settings is None:
        return [line.strip() for line in read_text(root / "classes.txt").splitlines() if line.strip()]
    try:
        names = yaml.safe_load(read_text(settings))["names"]
        if isinstance(names, dict):
            names = [names[i] for i in range(len(names))]
        return [str(name) for name in names]
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise DatasetError(f"{settings} does not name the classes (names: [cat, dog], or 0: cat, 1: dog).") from error


def find_settings(source: Path):
    """(Folder of the data set, its YAML file or None); None if this is no YOLO set."""
    if source.is_file():
        return (source.parent, source) if source.suffix in (".yaml", ".yml") else None
    files = sorted([*source.glob("*.yaml"), *source.glob("*.yml")], key=lambda file: (file.stem != "data", file))
    if files:
        return source, files[0]
    return (source, None) if (source / "classes.txt").is_file() else None


def find_root(source: Path) -> Path:
    """The folder of the data set, which the YAML file may name."""
    root, settings = find_settings(source) or (source, None)
    try:
        path = yaml.safe_load(read_text(settings)).get("path") if settings else None
    except (yaml.YAMLError, AttributeError):  # reading the names reports it
        path = None
    return root / path if isinstance(path, str) and (root / path).is_dir() else root


def _label_files(root: Path, image: str) -> list[Path]:
    """Where the labels of an image may be; ``image`` is relative to the image folder."""
    text = f"{os.path.splitext(image)[0]}.txt"
    head, found, tail = f"/{text}".rpartition("/images/")
    return [root / "labels" / text, *([root / f"{head}/labels/{tail}".lstrip("/")] if found else []), root / text]


def _read_line(line: str, where: str, names: list, image: dict, reading: Reading) -> None:
    try:
        label, *values = map(float, line.split())
    except ValueError:
        label, values = -1.0, []
    if label < 0 or label % 1 or len(values) < 4 or not all(-SLACK <= v <= 1 + SLACK for v in values):
        raise DatasetError(f"{where}: not a class number and the corners x y of a polygon, as fractions from 0 to 1.")
    if label >= len(names):
        raise DatasetError(f"{where}: class {label:g}, but there are only {len(names)} names.")
    sides = image["width"], image["height"]
    points = [round(value * sides[i % 2], 4) for i, value in enumerate(values)]
    if len(points) == 4:
        x, y, w, h = points
        reading.object(image, names[int(label)], bbox=[x - w / 2, y - h / 2, w, h])
    else:
        reading.object(image, names[int(label)], segmentation=[points])


def read(reading: Reading) -> dict:
    """
    The COCO content of a data set; every split, and lines of 5 numbers as boxes.

    Raises:
        DatasetError: a file is missing or broken.
    """
    root, settings = find_settings(reading.source) or (reading.source, None)
    if settings is None and not (root / "classes.txt").is_file():
        raise DatasetError(f"{root}: no data.yaml (or classes.txt) that names the classes.")
    names = _class_names(root, settings)
    root = find_root(reading.source)
    labels = {p for p in root.rglob("*.txt") if p.parent != root or p.name not in ("classes.txt", "notes.txt")}
    for name in images_below(os.fspath(reading.images_folder)):
        file = next((file for file in _label_files(root, name) if file in labels), None)
        labels.discard(file)
        image = reading.image(name)
        for number, line in enumerate(read_text(file).splitlines() if file else [], start=1):
            if line.strip():
                _read_line(line, f"{file}, line {number}", names, image, reading)
    labels = [file for file in labels if "labels" in file.parts[len(root.parts) :]]
    if labels:
        reading.notes[f"label files without an image: left out (first: {min(labels)})"] += len(labels)
    return reading.content(known_categories(root), names)


class YoloWriter(Writer):
    """See `Writer`."""

    suffix = ".txt"

    def _ring(self, annotation: dict, image: dict):
        """The one ring of an object."""
        if not annotation.get("segmentation"):
            self.notes[BOXES] += 1
        found = pieces(annotation, image, inside=True)
        if len(found) > 1 and has_overlaps([outer for outer, _ in found], image):
            found = traced(to_rle(annotation["segmentation"], image["height"], image["width"]))
        if any(holes for _, holes in found):
            self.notes[BRIDGED] += 1
        elif len(found) > 1:
            self.notes[JOINED] += 1
        rings = [bridged([outer, *holes]) for outer, holes in found]
        return bridged(rings) if rings else None

    def add(self, image: dict, annotations: list[dict]) -> None:
        lines = []
        for annotation in self.kept(image, annotations):
            ring = self._ring(annotation, image)
            if ring is None:
                self.notes[EMPTY] += 1
                continue
            values = (ring / (image["width"], image["height"])).ravel().tolist()
            label = self.index[annotation["category_id"]]
            lines.append(" ".join([str(label), *(f"{value:.8g}" for value in values)]) + "\n")
        write_bytes(self.path(image["file_name"], "labels"), "".join(lines).encode())
        self.place(image["file_name"], "images")

    def finish(self) -> None:
        super().finish()
        names = dict(enumerate(entry["name"] for entry in self.categories))
        content = {"train": "images", "val": "images", "names": names}
        text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
        write_bytes(self.folder / "data.yaml", text.encode())
