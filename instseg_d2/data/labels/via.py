"""
The JSON files of the VGG Image Annotator (VIA) 2: projects, and exported annotations. A region has one outline, so the
parts of an object are regions with one ``object_number``.
"""

import json
import os
from collections import Counter

from ...errors import DatasetError
from ...files import write_bytes
from ..coco_file import read_json
from .common import Reading, known_categories
from .geometry import bridged, ellipse, pieces
from .writer import BRIDGED, Writer

__all__ = ["ViaWriter", "file_names", "is_via", "read"]

CLASS_NAMES = ("class", "label", "category", "name", "type")  # of the attribute with the class, if there are several
OWN = ("object_number", "crowd")  # the further attributes that we write


def is_via(content) -> bool:
    """True for the content of a VIA project or of its exported annotations."""
    if not isinstance(content, dict):
        return False
    images = content.get("_via_img_metadata", content)
    entries = list(images.values()) if isinstance(images, dict) else [None]
    fits = all(isinstance(entry, dict) and {"filename", "regions"} <= entry.keys() for entry in entries)
    return fits and bool(entries or "_via_img_metadata" in content)


def file_names(content) -> list:
    """The images that a file lists."""
    entries = content.get("_via_img_metadata", content).values() if is_via(content) else ()
    return [entry["filename"] for entry in entries]


def _regions(entry: dict) -> list[dict]:
    regions = entry["regions"]
    return list(regions.values()) if isinstance(regions, dict) else list(regions)  # a dict in VIA 1


def _class_attribute(entries: list, path) -> str:
    """The region attribute that names the class; "" if regions have no attributes."""
    found = Counter(key for entry in entries for region in _regions(entry) for key in region["region_attributes"])
    names = [name for name in found if name not in OWN]
    if len(names) < 2:
        return names[0] if names else ""
    for name in CLASS_NAMES:
        if name in names:
            return name
    raise DatasetError(f"{path}: none of the region attributes {', '.join(names)} is called class; rename one.")


def _class_name(region: dict, attribute: str, names: list) -> str:
    """
    The class of a region, "object" without attributes; "" if it has none. Checkboxes are {name: true}.

    Args:
        names: those that can be chosen; a typed one may have spaces around it.
    """
    value = region["region_attributes"].get(attribute, "") if attribute else "object"
    if isinstance(value, dict):
        ticked = [name for name, on in value.items() if on]
        value = ticked[0] if len(ticked) == 1 else ""
    value = str(value)
    return value if value in names else value.strip()


def _outline(shape: dict):
    """("bbox" or "segmentation", box or polygon) of a region; None if it has no area."""
    kind = shape["name"]
    if kind == "rect":
        return "bbox", [shape[key] for key in ("x", "y", "width", "height")]
    if kind == "polygon":
        points = zip(shape["all_points_x"], shape["all_points_y"])
        return "segmentation", [float(v) for point in points for v in point]
    if kind == "circle":
        return "segmentation", ellipse(shape["cx"], shape["cy"], shape["r"], shape["r"])
    if kind == "ellipse":
        return "segmentation", ellipse(shape["cx"], shape["cy"], shape["rx"], shape["ry"], float(shape.get("theta", 0)))
    return None


def _add_objects(regions: list, image: dict, attribute: str, names: list, reading: Reading) -> None:
    groups: dict[tuple, dict] = {}
    for region in regions:
        name, found = _class_name(region, attribute, names), _outline(region["shape_attributes"])
        if found is None or not name:
            what = "without a class" if not name else f"without area ({region['shape_attributes']['name']})"
            reading.notes[f"regions {what}: left out"] += 1
            continue
        key, value = found
        group = region["region_attributes"].get("object_number")
        if key == "segmentation" and group and (name, group) in groups:
            groups[name, group]["segmentation"].append(value)
            continue
        entry = reading.object(image, name, **{key: value if key == "bbox" else [value]})
        entry["iscrowd"] = int(region["region_attributes"].get("crowd") == "1")
        if key == "segmentation" and group:
            groups[name, group] = entry


def read(reading: Reading) -> dict:
    """
    The COCO content of a file; rectangles are boxes without a mask.

    Raises:
        DatasetError: the file is broken.
    """
    path = reading.source
    content = read_json(path)[0]
    if not is_via(content):
        raise DatasetError(f"{path} is not a VIA file: it has no images with filename and regions.")
    project = "_via_img_metadata" in content
    entries = list(content.get("_via_img_metadata", content).values())
    names: list = []
    try:
        attribute = _class_attribute(entries, path)
        if project and attribute:
            shown = content.get("_via_attributes", {}).get("region", {}).get(attribute, {})
            names = [str(name) for name in shown.get("options") or {}]
        for entry in entries:
            image = reading.image(str(entry["filename"]))
            if image is not None:
                _add_objects(_regions(entry), image, attribute, names, reading)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        if isinstance(error, DatasetError):
            raise
        raise DatasetError(
            f"{path}: a region is not what VIA writes (shape_attributes, region_attributes): "
            f"{type(error).__name__} {error}."
        ) from error
    return reading.content(known_categories(path.parent), names)


class ViaWriter(Writer):
    """Writes a project, via_project.json; see `Writer`. All images stay in memory until `finish`."""

    per_image = False

    def __init__(self, *args):
        super().__init__(*args)
        self._images: dict[str, dict] = {}

    def _regions(self, annotation: dict, image: dict, number: int) -> list[dict]:
        attributes = {"class": self.names[annotation["category_id"]]}
        if annotation.get("iscrowd"):
            attributes["crowd"] = "1"
        if not annotation.get("segmentation"):
            box = dict(zip(("x", "y", "width", "height"), annotation["bbox"]))
            return [{"shape_attributes": {"name": "rect", **box}, "region_attributes": attributes}]
        found = pieces(annotation, image)
        if any(holes for _, holes in found):
            self.notes[BRIDGED] += 1
        if len(found) > 1:
            attributes["object_number"] = str(number)
        regions = []
        for outer, holes in found:
            x, y = bridged([outer, *holes]).T.tolist()
            shape = {"name": "polygon", "all_points_x": x, "all_points_y": y}
            regions.append({"shape_attributes": shape, "region_attributes": attributes})
        return regions

    def add(self, image: dict, annotations: list[dict]) -> None:
        name, path = image["file_name"], self.images_folder / image["file_name"]
        size = os.path.getsize(path) if os.path.isfile(path) else -1
        kept = self.kept(image, annotations, crowds=True)
        regions = [r for i, a in enumerate(kept, start=1) for r in self._regions(a, image, i)]
        self._images[f"{name}{size}"] = {"filename": name, "size": size, "regions": regions, "file_attributes": {}}

    def finish(self) -> None:
        super().finish()
        options = dict.fromkeys(self.names.values(), "")
        plain = {"type": "text", "description": "", "default_value": ""}
        attributes = {
            "class": {"type": "dropdown", "description": "", "options": options, "default_options": {}},
            "object_number": {**plain, "description": "regions of one object have one number"},
            "crowd": {**plain, "description": "1: a crowd"},
        }
        folder = os.path.join(os.path.abspath(self.images_folder), "")
        content = {
            "_via_settings": {
                "ui": {"image": {"region_label": "class", "region_color": "class"}},
                "core": {"buffer_size": 18, "filepath": {}, "default_filepath": folder},
                "project": {"name": self.folder.name},
            },
            "_via_img_metadata": self._images,
            "_via_attributes": {"region": attributes, "file": {}},
            "_via_data_format_version": "2.0.10",
            "_via_image_id_list": list(self._images),
        }
        write_bytes(self.folder / "via_project.json", json.dumps(content).encode())
