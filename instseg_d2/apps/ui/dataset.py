"""A data set on the page: its annotated pictures, its faults, and a model's mistakes."""

import functools
import itertools
import os
import threading
from collections.abc import Sequence
from typing import Callable, NamedTuple, Optional

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances

from ...data import read_image
from ...data.coco import CocoSource, class_difference, require_registered
from ...errors import ConfigError, DatasetError
from ...evaluation.mistakes import MISSED, WRONG_CLASS, Mistake, find_mistakes, objects_of
from ...inference.image_predictor import ImagePredictor
from ...visualization.annotations import draw_annotations
from ...visualization.overlay import draw_instances, draw_layers
from ..results import shown_name
from .files import require_inside
from .found import LOWEST, fitted, told

__all__ = ["DataSet", "Error"]

SHOWN_SIDE = 900  # pixels, longest side of a picture in the page
SMALLEST_CROP, CROP_SIDE = 96, 320  # pixels of the image, and of the shown picture


class Error(NamedTuple):
    """A mistake in an image of the data set; regions are run lengths or boxes [x, y, width, height]."""

    record: int
    mistake: Mistake
    text: str
    size: float  # of the object, square pixels
    regions: list


def _xywh(region) -> np.ndarray:
    return np.asarray(mask_util.toBbox(region) if isinstance(region, dict) else region, dtype=float)


class DataSet:
    """
    A registered data set; nothing is read before it is shown.

    Args:
        name: in Detectron2's catalogs.
        title: shown name.
        folders: besides the image folder, where pictures may be.

    Raises:
        DatasetError: there is no such data set.
    """

    def __init__(self, name: str, title: str = "", folders: Sequence[str] = ()):
        require_registered(name)
        self.name, self.title = name, shown_name(title or name)
        root = MetadataCatalog.get(name).get("image_root")
        self.folders = [*([root] if root else []), *folders]
        self._lock = threading.Lock()

    @functools.cached_property
    def records(self) -> list[dict]:
        """Detectron2's records. Raises DatasetError for an unusable file."""
        with self._lock:
            return DatasetCatalog.get(self.name)

    @property
    def class_names(self) -> list[str]:
        self.records  # noqa: B018 (reading them sets the names)
        return list(MetadataCatalog.get(self.name).get("thing_classes") or [])

    def summary(self) -> str:
        objects = sum(len(record.get("annotations", [])) for record in self.records)
        counts = {"image": len(self.records), "object": objects, "class": len(self.class_names)}
        return ", ".join(f"{n} {name}{('es' if name == 'class' else 's') * (n != 1)}" for name, n in counts.items())

    def having(self, class_name: Optional[str]) -> list[int]:
        """The indices of the records with an object of a class; None: all."""
        if class_name is None:
            return list(range(len(self.records)))
        names = self.class_names  # two classes may have one name
        return [
            i for i, record in enumerate(self.records)
            if any(names[a["category_id"]] == class_name for a in record.get("annotations", []))
        ]  # fmt: skip

    def shown_name(self, index: int) -> str:
        return shown_name(os.path.basename(os.fspath(self.records[index]["file_name"])))

    def image(self, index: int, value_range=()) -> np.ndarray:
        """The picture of a record (H, W, 3) RGB. Raises ImageError if it is broken or outside the chosen folders."""
        record = self.records[index]
        require_inside(record["file_name"], self.folders)
        size = (record["width"], record["height"]) if "width" in record else None
        return read_image(record["file_name"], "RGB", size=size, value_range=value_range)

    def picture(self, index: int) -> tuple[np.ndarray, str]:
        """The picture of a record with its annotations, and its caption; a grey one if it cannot be drawn."""
        try:
            drawn = draw_annotations(self.image(index), self.records[index], self.class_names)
        except Exception as error:
            return np.full((90, 120, 3), 200, np.uint8), shown_name(self._told(error, index))
        count = len(self.records[index].get("annotations", []))
        return fitted(drawn, SHOWN_SIDE), f"{self.shown_name(index)}: {count} object{'s' * (count != 1)}"

    def _told(self, error: Exception, index: int) -> str:
        """Why an image cannot be used."""
        return told(error, os.fspath(self.records[index]["file_name"]))

    def faults(self) -> tuple[str, list]:
        """
        What ``instseg check`` finds: a summary and its `Finding`s. Reads every image.

        Raises:
            DatasetError: the file is unusable, or there is none.
        """
        source = DatasetCatalog[self.name]
        if not isinstance(source, CocoSource):
            raise DatasetError(f"{self.title} was not registered as a COCO file, so there is nothing to check.")
        report = source.report()
        return report.summary, report.findings

    def label_map(self, predictor: ImagePredictor) -> list[int]:
        """
        The class of the data set for each class of a model, by name.

        Raises:
            ConfigError: their classes differ, or two of them have one name and another place.
        """
        names, ours = predictor.class_names, self.class_names
        if names is None:
            raise ConfigError("This model does not name its classes, so its mistakes cannot be told.")
        difference = class_difference(sorted(names), sorted(ours), "the model", self.title)
        if difference:
            raise ConfigError(f"This model has other classes than the data set: {difference}.")
        if list(names) == ours:
            return list(range(len(ours)))
        doubled = next((name for name in ours if ours.count(name) > 1), None)
        if doubled is not None:
            raise ConfigError(
                f"Two classes are named {doubled!r}, and the model has its classes in another order than the data "
                "set, so they cannot be matched by name."
            )
        return [ours.index(name) for name in names]

    def mistakes(
        self, predictor: ImagePredictor, limit: int, threshold: float, report: Callable[[float, str], None]
    ) -> tuple[list[Error], dict[int, Instances], list[str]]:
        """
        Run a model on the first ``limit`` images.

        Returns:
            The mistakes, the highest cost first, among equals the largest object; the detections {record: Instances};
            a sentence for each image that cannot be used.
        """
        labels, errors, found, faults = self.label_map(predictor), [], {}, []
        for index in range(min(limit, len(self.records))):
            report(index / min(limit, len(self.records)), self.shown_name(index))
            try:
                image = self.image(index, predictor.value_range)
                inputs = predictor.preprocess(image, "RGB")
                instances = predictor.predict([inputs], LOWEST, "run_lengths")[0]
                errors += self._errors(index, instances, labels, threshold)
            except Exception as error:
                faults.append(self._told(error, index))
                continue
            found[index] = instances[instances.scores >= threshold]
        errors.sort(key=lambda error: (-error.mistake.cost, -error.size))
        return errors, found, faults

    def _errors(self, index: int, instances: Instances, labels: list[int], threshold: float) -> list[Error]:
        record, names = self.records[index], self.class_names
        found, truth = objects_of(instances, record, labels)
        errors = []
        for mistake in find_mistakes(found, truth, threshold):
            true = None if mistake.truth is None else names[truth.labels[mistake.truth]]
            label = None if mistake.detection is None else names[found.labels[mistake.detection]]
            text = f"missed {true}" if mistake.kind == MISSED else f"false {label}"
            if mistake.kind == WRONG_CLASS:
                text = f"{label} instead of {true}"
            parts = [] if mistake.truth is None else [truth.regions[mistake.truth]]
            parts += [] if mistake.detection is None else [found.regions[mistake.detection]]
            size = max(float(np.prod(_xywh(part)[2:])) for part in parts)
            errors.append(Error(index, mistake, text, size, parts))
        return errors

    def crop(self, error: Error, image: np.ndarray) -> tuple[np.ndarray, str]:
        """The surroundings of a mistake with its object drawn, and a caption."""
        region = error.regions[-1]  # the detection, if there is one
        masks, boxes = ([region], None) if isinstance(region, dict) else (None, self._corners(region))
        drawn = draw_layers(image, masks, boxes, [""], alpha=0.35, boxes=masks is None)
        x0, y0, x1, y1 = self._corners(*error.regions)[0]
        side = max(1.6 * max(x1 - x0, y1 - y0), SMALLEST_CROP)
        (left, right), (top, bottom) = (
            (max(0, int((a + b - side) / 2)), int(np.ceil((a + b + side) / 2))) for a, b in ((x0, x1), (y0, y1))
        )
        crop = drawn[top:bottom, left:right].copy()  # else it would keep the whole image
        return fitted(crop, CROP_SIDE), f"{error.text} · {error.mistake.cost:.2f}"

    @staticmethod
    def _corners(*regions) -> np.ndarray:
        """(1, 4) corners of the box around regions."""
        boxes = np.array([_xywh(region) for region in regions])
        return np.concatenate([boxes[:, :2].min(0), (boxes[:, :2] + boxes[:, 2:]).max(0)])[None]

    def crops(self, errors: Sequence[Error], value_range=()) -> list[tuple[np.ndarray, str]]:
        """The crops of mistakes; each image is read once, and only one is in memory. value_range: see `read_image`."""
        crops: dict[int, tuple[np.ndarray, str]] = {}
        by_record = sorted(range(len(errors)), key=lambda place: errors[place].record)
        for record, places in itertools.groupby(by_record, lambda place: errors[place].record):
            image = self.image(record, value_range)
            crops.update((place, self.crop(errors[place], image)) for place in places)
            del image  # before the next one is read
        return [crops[place] for place in range(len(errors))]

    def side_by_side(
        self, error: Error, found: Instances, labels: Sequence[str], value_range=()
    ) -> list[tuple[np.ndarray, str]]:
        """
        The image of a mistake with its annotations, and with the detections; the mistake is framed.

        value_range: see `read_image`.
        """
        image = self.image(error.record, value_range)
        pictures = (
            draw_annotations(image, self.records[error.record], self.class_names),
            draw_instances(image, found, labels),
        )
        x0, y0, x1, y1 = self._corners(*error.regions)[0].round().astype(int).tolist()
        width = max(1, round(min(image.shape[:2]) / 300))
        for picture in pictures:
            for color, thickness in (((255, 255, 255), width + 2), ((220, 0, 0), width)):
                cv2.rectangle(picture, (x0 - 2, y0 - 2), (x1 + 1, y1 + 1), color, thickness)  # outside the object
        return [(fitted(p, SHOWN_SIDE), title) for p, title in zip(pictures, ("annotated", "found"))]
