"""
YOLO's segmentation labels, as Ultralytics reads them: labels/NAME.txt beside images/NAME.jpg, a line for each object:
its class from 0 and the corners x y of one polygon, as fractions of the image's sides; data.yaml names the classes.
In the path of an image, Ultralytics replaces the last folder images by labels.
"""

import os
from pathlib import Path

import yaml

from ...errors import DatasetError
from ...files import write_bytes
from ..missing import images_below
from ..segmentations import to_rle
from .common import Reading, known_categories, read_text
from .geometry import bridged, has_overlaps, pieces, traced
from .writer import BOXES, BRIDGED, EMPTY, JOINED, Writer

__all__ = ["YoloWriter", "find_root", "find_settings", "has_labels", "read"]

CLASSES = "classes.txt"
OTHER_TEXTS = (CLASSES, "notes.txt")  # beside the labels
SLACK = 0.01  # by which a fraction may be above 1 or below 0, as in Ultralytics


def _class_names(root: Path, settings) -> list[str]:
    """The class names by index, from data.yaml, else from classes.txt (Label Studio)."""
    if settings is None:
        return [line.strip() for line in read_text(root / CLASSES).splitlines() if line.strip()]
    try:
        names = yaml.safe_load(read_text(settings))["names"]
        if isinstance(names, dict):
            names = [names[i] for i in range(len(names))]
        return [str(name) for name in names]
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise DatasetError(f"{settings} does not name the classes (names: [cat, dog], or 0: cat, 1: dog).") from error


def _settings(file: Path) -> dict:
    """The content of a YAML file; {} if it has no keys, or is broken, which reading the names reports."""
    try:
        content = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, DatasetError):
        return {}
    return content if isinstance(content, dict) else {}


def find_settings(source: Path):
    """(Folder of the data set, its YAML file or None); None if nothing can name the classes."""
    if source.is_file():
        return (source.parent, source) if source.suffix in (".yaml", ".yml") else None
    files = sorted([*source.glob("*.yaml"), *source.glob("*.yml")], key=lambda file: (file.stem != "data", file))
    named = [file for file in files if "names" in _settings(file)]
    if named:
        return source, named[0]
    if (source / CLASSES).is_file():
        return source, None
    return (source, files[0]) if files and files[0].stem == "data" else None


def find_root(source: Path) -> Path:
    """The folder of the data set, which the YAML file may name."""
    root, settings = find_settings(source) or (source, None)
    path = _settings(settings).get("path") if settings else None
    return root / path if isinstance(path, str) and (root / path).is_dir() else root


def _label_files(root: Path) -> list[Path]:
    return [p for p in root.rglob("*.txt") if p.parent != root or p.name not in OTHER_TEXTS]


def has_labels(source: Path) -> bool:
    """True if the classes have names, and one of the first files has lines of numbers."""
    if find_settings(source) is None:
        return False
    for file in sorted(_label_files(find_root(source)))[:100]:
        try:
            label, *values = map(float, file.read_text(errors="replace").split("\n", 1)[0].split()[:5])
        except ValueError:  # another text, or nothing
            continue
        if label % 1 == 0 and len(values) == 4:
            return True
    return False


def _label_path(image: Path) -> Path:
    """The label file of an image by Ultralytics' rule."""
    *folders, name = image.parts
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return Path(*folders, f"{os.path.splitext(name)[0]}.txt")


def _places(root: Path, images: Path, name: str) -> list[str]:
    """Where the labels of an image may be: where its folder says, then for images that are kept elsewhere."""
    found = [_label_path(folder / name) for folder in (images, root / "images", root, root / "labels")]
    return [os.path.abspath(path) for path in found]


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
    if settings is None and not (root / CLASSES).is_file():
        raise DatasetError(f"{root}: no data.yaml (or classes.txt) that names the classes.")
    names = _class_names(root, settings)
    root = find_root(reading.source)
    labels = {os.path.abspath(file): file for file in _label_files(root)}
    used: dict[Path, str] = {}
    for name in images_below(os.fspath(reading.images_folder)):
        file = next((labels[p] for p in _places(root, reading.images_folder, name) if p in labels), None)
        if file and used.setdefault(file, name) != name:
            raise DatasetError(f"{file}: {used[file]} and {name} could both be its image; rename one, or set --images.")
        image = reading.image(name)
        for number, line in enumerate(read_text(file).splitlines() if file else [], start=1):
            if line.strip():
                _read_line(line, f"{file}, line {number}", names, image, reading)
    left = [f for f in labels.values() if f not in used and "labels" in f.parts[len(root.parts) :]]
    if left:
        reading.note("label files without an image: left out", str(min(left)), len(left))
    return reading.content(known_categories(root), names)


class YoloWriter(Writer):
    """See `Writer`."""

    suffix = ".txt"
    image_folder = "images"

    def path(self, file_name: str, *below: str) -> Path:
        return self.folder / _label_path(Path(self.image_folder, file_name))

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
        write_bytes(self.path(image["file_name"]), "".join(lines).encode())
        self.place(image["file_name"])

    def finish(self) -> None:
        super().finish()
        names = dict(enumerate(entry["name"] for entry in self.categories))
        content = {"train": "images", "val": "images", "names": names}
        text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
        write_bytes(self.folder / "data.yaml", text.encode())
