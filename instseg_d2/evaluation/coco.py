"""COCO and LVIS evaluation with masks as run lengths. D detections, H x W pixels."""

import itertools
import json
import logging
from pathlib import Path
from typing import Optional

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator, LVISEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances
from detectron2.utils import comm

from ..files import atomic_write, write_bytes
from ..modeling.postprocessing import RunLengthMasks
from .fast_matching import FastMatching, can_match

__all__ = ["CocoEvaluator", "LvisEvaluator", "coco_results", "encoded_masks"]

logger = logging.getLogger(__name__)


def encoded_masks(instances: Instances) -> RunLengthMasks:
    """The instances' pred_masks, (D, H, W) bool or run lengths, as run lengths."""
    masks = instances.pred_masks
    return masks if isinstance(masks, RunLengthMasks) else RunLengthMasks.encode(masks.bool())


def coco_results(instances: Instances, image_id) -> list[dict]:
    """Like Detectron2's ``instances_to_coco_json``, but several times faster with masks."""
    if not instances.has("pred_masks"):
        return instances_to_coco_json(instances, image_id)
    codes = encoded_masks(instances).codes
    others = Instances(instances.image_size, **instances.get_fields())
    others.remove("pred_masks")
    results = instances_to_coco_json(others, image_id)
    for result, code in zip(results, codes):
        result["segmentation"] = {"size": code["size"], "counts": code["counts"].decode()}
    return results


def _prediction(sample: dict, output: dict) -> dict:
    """What Detectron2's evaluators store for an image."""
    prediction = {"image_id": sample["image_id"]}
    if "instances" in output:
        prediction["instances"] = coco_results(output["instances"].to("cpu"), sample["image_id"])
    if "proposals" in output:
        prediction["proposals"] = output["proposals"].to("cpu")
    return prediction


class CocoEvaluator(COCOEvaluator):
    """
    Detectron2's evaluator; pred_masks may also be `RunLengthMasks`. Images that were not processed are excluded,
    together with their objects. The files it writes use the ids of the annotation file. Boxes and
    masks are matched by faster-coco-eval, if it is installed and the numbers are the same, otherwise by pycocotools.
    """

    reads_run_lengths = True

    def __init__(self, dataset_name: str, *args, output_dir: Optional[str] = None, **kwargs):
        super().__init__(dataset_name, *args, output_dir=output_dir, **kwargs)
        self._name, self._folder = dataset_name, output_dir
        self._original_ids = MetadataCatalog.get(dataset_name).get("original_ids")

    def process(self, inputs, outputs):
        """See Detectron2's."""
        predictions = map(_prediction, inputs, outputs)
        self._predictions += [prediction for prediction in predictions if len(prediction) > 1]

    def add(self, predictions: dict) -> None:
        """Add predictions in COCO's results format, with contiguous classes: {image id: objects}."""
        self._predictions += [{"image_id": image_id, "instances": x} for image_id, x in predictions.items()]

    def evaluate(self, img_ids=None):
        """See Detectron2's; ``img_ids``: by default the images that were processed."""
        results = super().evaluate(self._processed() if img_ids is None else img_ids)
        if self._folder and self._original_ids and comm.is_main_process():
            self._restore_ids(Path(self._folder))
        return results

    def _eval_predictions(self, predictions, img_ids=None):
        """See Detectron2's."""
        results = list(itertools.chain.from_iterable(x["instances"] for x in predictions))
        tasks = sorted(self._tasks or self._tasks_from_predictions(results))
        numbers = self._metadata.get("thing_dataset_id_to_contiguous_id", {})
        ids = {number: category for category, number in numbers.items()}
        known = not ids or all(x["category_id"] in ids for x in results)  # otherwise Detectron2 says what is wrong
        boxes_and_masks = results and "keypoints" not in tasks
        if not (self._do_evaluation and boxes_and_masks and known and can_match(self._coco_api, results)):
            super()._eval_predictions(predictions, img_ids)
            return
        for result in results:
            result["category_id"] = ids[result["category_id"]] if ids else result["category_id"]
        if self._folder:
            write_bytes(Path(self._folder) / "coco_instances_results.json", json.dumps(results).encode())
        for task in tasks:
            # With a box, a mask would have the box's area.
            kept = [{key: x[key] for key in x if key != "bbox" or task == "bbox"} for x in results]
            matching = FastMatching(self._coco_api, self._coco_api.loadRes(kept), task)
            matching.params.maxDets = self._max_dets_per_image
            matching.params.imgIds = matching.params.imgIds if img_ids is None else img_ids
            matching.evaluate()
            matching.summarize()
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(matching, task, class_names=names)

    def _processed(self) -> Optional[list]:
        """The ids of the processed images, on the main process; None if all images were processed."""
        parts = comm.gather([prediction["image_id"] for prediction in self._predictions])
        ids = set(itertools.chain.from_iterable(parts))
        left_out = set(self._coco_api.imgs) - ids
        if not ids or not left_out:
            return None
        objects = sum(len(self._coco_api.imgToAnns[i]) for i in left_out)
        logger.warning(
            "%s: %d of %d images are excluded (%d objects), the first is %s: the results are for the others.",
            self._name,
            len(left_out),
            len(self._coco_api.imgs),
            objects,
            self._coco_api.imgs[min(left_out)].get("file_name"),
        )
        return sorted(ids)

    def _restore_ids(self, folder: Path):
        """Restore the ids of the annotation file in the prediction files."""
        images, categories = (self._original_ids.get(key, {}) for key in ("images", "categories"))

        def restored(entry: dict) -> dict:
            ids = {"image_id": images.get(entry["image_id"], entry["image_id"])}
            if "category_id" in entry:
                ids["category_id"] = categories.get(entry["category_id"], entry["category_id"])
            return {**entry, **ids}

        path = folder / "coco_instances_results.json"
        if path.is_file():
            write_bytes(path, json.dumps([restored(x) for x in json.loads(path.read_text())]).encode())
        path = folder / "instances_predictions.pth"
        if path.is_file():
            predictions = [restored(x) for x in torch.load(path, weights_only=False)]
            for prediction in predictions:
                if "instances" in prediction:
                    prediction["instances"] = [restored(x) for x in prediction["instances"]]
            with atomic_write(path) as temporary:
                torch.save(predictions, temporary)


class LvisEvaluator(LVISEvaluator):
    """Detectron2's evaluator; pred_masks may also be `RunLengthMasks`."""

    reads_run_lengths = True

    def process(self, inputs, outputs):
        """See Detectron2's."""
        self._predictions += map(_prediction, inputs, outputs)
