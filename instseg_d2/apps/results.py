"""Writes the results of a detection run as they come, and names its pictures."""

import glob
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Optional

from detectron2.structures import Instances

from ..data.labels import WRITERS, Writer
from ..data.labels.geometry import bridged, traced
from ..errors import ConfigError, DatasetError
from ..evaluation.coco import coco_results
from ..files import ListFile, read_list, remove_unfinished, write_bytes
from ..inference.image_predictor import ImagePredictor
from ..runtime.sessions import needed

__all__ = [
    "Records",
    "label_writer",
    "named_results",
    "read_predictions",
    "relative_names",
    "shown_name",
    "unique_stem",
]

RECORDS = "images.json", "results.json"
SETTINGS = "run.json"
MAX_STEM = 200  # bytes; the full name may have at most 255


class Records:
    """
    What a run has done, in two lists of its folder: ``results.json``, the objects in COCO's results format, and
    ``images.json``, the images. Until the run is finished they are ``results.jsonl`` and ``images.jsonl``.
    ``run.json`` has the settings.

    An entry of an image has ``id``, ``file_name``, ``width``, ``height``, ``objects`` (class name -> number) and the
    files ``picture`` and ``explain``, if written; or, if the image was skipped, ``id``, ``file_name`` and ``error``.

    Args:
        folder: an existing folder.
        settings: what decides the results, for JSON; "folder": the file names are relative to it.
        resume: continue the lists of an earlier run, without the images that it skipped or did not finish.

    Attributes:
        done: {file name: id} of the images of the earlier run.
        pictures: their files.
        results: number of objects so far.

    Raises:
        ConfigError: the earlier run had other settings.
        DatasetError: the lists are not those of a run.
    """

    def __init__(self, folder: str, settings: dict, resume: bool = False):
        self.done: dict[str, int] = {}
        self.pictures: list[str] = []
        if resume:
            _same_settings(os.path.join(folder, SETTINGS), settings)
            remove_unfinished(folder)
            self._images = ListFile(os.path.join(folder, RECORDS[0]), lambda image: "error" not in image)
            for image in self._images:
                self.done[image["file_name"]] = image["id"]
                self.pictures += [image[key] for key in ("picture", "explain") if key in image]
            ids = set(self.done.values())
            self._results = ListFile(os.path.join(folder, RECORDS[1]), lambda result: result["image_id"] in ids)
        else:
            self._images, self._results = (ListFile(os.path.join(folder, name)) for name in RECORDS)
        write_bytes(os.path.join(folder, SETTINGS), json.dumps(settings).encode())

    @property
    def results(self) -> int:
        return self._results.count

    def add(self, image: dict, results: list[dict]) -> None:
        """Add an image and its objects; the image last, so that it is complete if it is there."""
        self._results.add(results)
        self._images.add([image])

    def images(self) -> Iterator[dict]:
        """The entries of the images so far."""
        return iter(self._images)

    def both(self) -> Iterator[tuple[dict, list[dict]]]:
        """Each image that was not skipped, with its objects."""
        groups = itertools.groupby(self._results, lambda result: result["image_id"])
        group = next(groups, None)
        for image in self._images:
            if group is not None and group[0] == image["id"]:
                yield image, list(group[1])
                group = next(groups, None)
            elif "error" not in image:
                yield image, []

    def finish(self) -> None:
        self._results.finish()
        self._images.finish()


def _same_settings(path: str, settings: dict) -> None:
    if not os.path.isfile(path):
        return
    with open(path, encoding="utf-8") as file:
        earlier = json.load(file)
    settings = json.loads(json.dumps(settings))
    for name in sorted({*earlier, *settings}):
        before, now = earlier.get(name), settings.get(name)
        if before != now:
            raise ConfigError(
                f"{os.path.dirname(path)} holds a run with another {name.replace('_', ' ')}, {before} instead of "
                f"{now}: continue it with the same arguments, or choose another folder."
            )


def read_predictions(folder: str) -> Iterator[tuple[str, list[dict]]]:
    """
    The paths of the images in an output folder of `instseg predict`, with their objects in COCO's results format.

    Raises:
        DatasetError: the folder has no finished predictions.
    """
    images, results, settings = (os.path.join(folder, name) for name in (*RECORDS, SETTINGS))
    if all(map(os.path.isfile, (images, results, settings))):
        with open(settings, encoding="utf-8") as file:
            common = json.load(file)["folder"]
        objects: dict[str, list] = defaultdict(list)
        for result in read_list(results):
            objects[result["file_name"]].append(result)
        for image in read_list(images):
            if "error" not in image:
                yield os.path.join(common, image["file_name"]), objects[image["file_name"]]
        return
    if "://" not in folder and not glob.glob(os.path.join(glob.escape(folder), "part-*.parquet")):
        unfinished = " of a finished run (--resume continues one)" if os.path.isfile(f"{images}l") else ""
        raise DatasetError(f"{folder}: no predictions{unfinished} in this folder, which `instseg predict` writes.")
    needed("predictions in Parquet", "ray", "pyarrow")
    from .parquet import coco_entries, read_rows

    for row, information in read_rows(folder):
        if row.get("path") is None:
            raise DatasetError(f"{folder}: these predictions have no paths, by which their images would be found.")
        if row["error"] is None:
            yield row["path"], coco_entries(row, information, row["path"])


def shown_name(name: str) -> str:
    """A file's name as valid Unicode: bytes that are not UTF-8 become U+FFFD."""
    return os.fsencode(name).decode("utf-8", "replace")


def named_results(
    instances: Instances, predictor: ImagePredictor, image_id: int, file_name: str, polygons: bool = False
) -> list[dict]:
    """
    COCO results of an image, with the data set's category ids, ``category_name``, ``file_name`` and, for objects
    that are followed (``track_ids``, see `Tracker`), ``track_id``.

    Args:
        polygons: give masks as polygons, to the pixel; holes are cut open by bridges of no width.
    """
    results = coco_results(instances, image_id)
    track_ids = instances.track_ids.tolist() if instances.has("track_ids") else [0] * len(results)
    for result, track_id in zip(results, track_ids):
        if track_id:
            result["track_id"] = track_id
        index = result["category_id"]
        result["category_id"] = predictor.category_id(index)
        result["category_name"] = predictor.class_name(index)
        result["bbox"] = [round(value, 3) for value in result["bbox"]]
        result["score"] = round(result["score"], 6)
        result["file_name"] = file_name
        if polygons and "segmentation" in result:
            outlines = (bridged([ring, *holes]) for ring, holes in traced(result["segmentation"]))
            result["segmentation"] = [outline.ravel().tolist() for outline in outlines]
    return results


def relative_names(files: Sequence[str]) -> tuple[str, list[str]]:
    """The folder that files share, and their paths from there."""
    common = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    return common, [os.path.relpath(os.path.abspath(file), common) for file in files]


def label_writer(label_format: str, folder: str, predictor: ImagePredictor, files: Sequence[str]) -> Optional[Writer]:
    """
    The writer of a run's labels; None for "coco", since these are the results.

    Raises:
        ConfigError: the class names are unknown.
        DatasetError: two images would share a label file.
    """
    if label_format == "coco":
        return None
    if predictor.class_names is None:
        raise ConfigError(f"--format {label_format} needs the names of the classes, which this model does not know")
    classes = range(len(predictor.class_names))
    categories = [{"id": predictor.category_id(i), "name": predictor.class_name(i)} for i in classes]
    common, names = relative_names(files)
    writer = WRITERS["voc" if label_format == "png" else label_format](folder, categories, common)
    writer.check_names(names)
    return writer


def unique_stem(file: str, taken: set[str], ends: tuple[str, ...] = ("",)) -> str:
    """
    A name for the outputs of a file: its own without suffix, shortened if too long, and numbered if taken.

    Args:
        taken: names in use, in lower case; the new ones are added.
        ends: endings that will be added to the stem.
    """
    base = shown_name(os.path.splitext(os.path.basename(file))[0])
    base = base.encode()[:MAX_STEM].decode("utf-8", "ignore")
    stem, number = base, 1
    while any((stem + end).lower() in taken for end in ends):
        number += 1
        stem = f"{base}_{number}"
    taken.update((stem + end).lower() for end in ends)
    return stem
