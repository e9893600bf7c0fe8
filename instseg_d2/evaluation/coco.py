"""COCO's and LVIS's evaluation with masks as run lengths."""

from detectron2.evaluation import COCOEvaluator, LVISEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Instances

from ..modeling.postprocessing import RunLengthMasks

__all__ = ["CocoEvaluator", "LvisEvaluator", "coco_results", "encoded_masks"]


def encoded_masks(instances: Instances) -> RunLengthMasks:
    """Their pred_masks, (D, H, W) bool or run lengths already."""
    masks = instances.pred_masks
    return masks if isinstance(masks, RunLengthMasks) else RunLengthMasks.encode(masks.bool())


def coco_results(instances: Instances, image_id) -> list[dict]:
    """What Detectron2's ``instances_to_coco_json`` returns, several times faster where there are masks."""
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
    """What Detectron2's evaluators keep of an image."""
    prediction = {"image_id": sample["image_id"]}
    if "instances" in output:
        prediction["instances"] = coco_results(output["instances"].to("cpu"), sample["image_id"])
    if "proposals" in output:
        prediction["proposals"] = output["proposals"].to("cpu")
    return prediction


class CocoEvaluator(COCOEvaluator):
    """Detectron2's evaluator; instances may also have `RunLengthMasks` as pred_masks."""

    reads_run_lengths = True

    def process(self, inputs, outputs):
        """See Detectron2's."""
        predictions = map(_prediction, inputs, outputs)
        self._predictions += [prediction for prediction in predictions if len(prediction) > 1]


class LvisEvaluator(LVISEvaluator):
    """Detectron2's evaluator; instances may also have `RunLengthMasks` as pred_masks."""

    reads_run_lengths = True

    def process(self, inputs, outputs):
        """See Detectron2's."""
        self._predictions += map(_prediction, inputs, outputs)
