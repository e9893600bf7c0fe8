"""Evaluates predictions that were written before, without the model."""

import importlib.util
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import print_csv_format

from ..errors import DatasetError
from .coco import CocoEvaluator
from .run import write_results

__all__ = ["evaluate_predictions"]

logger = logging.getLogger(__name__)

MAX_DETECTIONS = 100  # of COCO's AP, unless an image has more


class _Names:
    """Finds the image of an annotation file that a path belongs to: the one whose name ends the path."""

    def __init__(self, records: Sequence[dict], root: str):
        self._records = defaultdict(list)
        for record in records:
            name = os.path.relpath(record["file_name"], root).replace("\\", "/")
            self._records[name.rsplit("/", 1)[-1]].append((f"/{name}", record["image_id"]))

    def find(self, path: str):
        """The image's id; None if there is none."""
        path = "/" + path.replace("\\", "/").lstrip("/")
        ids = [
            (len(name), image_id)
            for name, image_id in self._records.get(path.rsplit("/", 1)[-1], ())
            if path.endswith(name)
        ]
        return max(ids)[1] if ids else None


def evaluate_predictions(dataset_name: str, predictions: Iterable[tuple], output_dir: str) -> dict:
    """
    The metrics of COCO, as a direct evaluation gives them if no score threshold left out detections.

    Args:
        dataset_name: a registered COCO data set.
        predictions: for each image its path and its objects in COCO's results format, with ``category_name``.
        output_dir: written to: ``results.json`` and COCO's results.

    Returns:
        {task: {metric: value}}; images without predictions are left out of it.

    Raises:
        DatasetError: no path belongs to the data set, one image comes twice, or a class is unknown there.
    """
    records, metadata = DatasetCatalog.get(dataset_name), MetadataCatalog.get(dataset_name)
    names = _Names(records, metadata.get("image_root") or ".")
    classes = {name: index for index, name in enumerate(metadata.thing_classes)}
    found, strangers, most = {}, [], MAX_DETECTIONS
    for path, objects in predictions:
        image_id = names.find(path)
        if image_id is None:
            strangers.append(path)
            continue
        if image_id in found:
            raise DatasetError(f"{path}: this image has predictions twice.")
        unknown = {x["category_name"] for x in objects} - set(classes)
        if unknown:
            raise DatasetError(
                f"the predictions have the class {min(unknown)}, but {metadata.json_file} has {', '.join(classes)}."
            )
        found[image_id] = [{**x, "image_id": image_id, "category_id": classes[x["category_name"]]} for x in objects]
        most = max(most, len(objects))
    if strangers:
        text = f"{len(strangers)} images with predictions, such as {strangers[0]}, are not in {metadata.json_file}"
        if not found:
            raise DatasetError(f"{text}, nor is any other.")
        logger.warning("%s.", text)
    evaluator = CocoEvaluator(
        dataset_name,
        output_dir=output_dir,
        max_dets_per_image=most,
        use_fast_impl=importlib.util.find_spec("detectron2._C") is not None,
    )
    evaluator.reset()
    evaluator.add(found)
    results = evaluator.evaluate()
    print_csv_format(results)
    write_results(os.path.join(output_dir, "results.json"), results)
    return results
