"""Which evaluator a data set wants."""

import importlib.util

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)

from ..data import DatasetError
from .proposal_recall import ProposalRecallEvaluator

__all__ = ["build_evaluator"]


def _coco(cfg: CfgNode, name: str, output_dir: str) -> DatasetEvaluator:
    if cfg.MODEL.META_ARCHITECTURE == "InstanceFCN" and not cfg.MODEL.INSTANCE_FCN.CLASSIFY:
        return ProposalRecallEvaluator(name, output_dir)
    # The compiled COCOeval is part of Detectron2's own library, which may not be built.
    compiled = importlib.util.find_spec("detectron2._C") is not None
    return COCOEvaluator(
        name,
        output_dir=output_dir,
        max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        use_fast_impl=compiled,
    )


def _lvis(cfg: CfgNode, name: str, output_dir: str) -> LVISEvaluator:
    if importlib.util.find_spec("lvis") is None:
        raise DatasetError(f"evaluating {name} needs the package lvis: pip install lvis.")
    return LVISEvaluator(name, output_dir=output_dir, max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE)


def _sem_seg(cfg: CfgNode, name: str, output_dir: str) -> SemSegEvaluator:
    return SemSegEvaluator(name, output_dir=output_dir)


def _panoptic(cfg: CfgNode, name: str, output_dir: str) -> DatasetEvaluators:
    if importlib.util.find_spec("panopticapi") is None:
        raise DatasetError(f"evaluating {name} needs the package panopticapi of the COCO authors.")
    panoptic = COCOPanopticEvaluator(name, output_dir)
    return DatasetEvaluators([_coco(cfg, name, output_dir), _sem_seg(cfg, name, output_dir), panoptic])


def _pascal_voc(cfg: CfgNode, name: str, output_dir: str) -> PascalVOCDetectionEvaluator:
    return PascalVOCDetectionEvaluator(name)


_EVALUATORS = {
    "coco": _coco,
    "coco_panoptic_seg": _panoptic,
    "lvis": _lvis,
    "pascal_voc": _pascal_voc,
    "sem_seg": _sem_seg,
}


def build_evaluator(cfg: CfgNode, dataset_name: str, output_dir: str) -> DatasetEvaluator:
    """
    The evaluator for the ``evaluator_type`` in the data set's metadata: coco, lvis, coco_panoptic_seg, pascal_voc or
    sem_seg. COCO's and LVIS's AP count up to ``TEST.DETECTIONS_PER_IMAGE`` detections an image. Proposals without
    classes (InstanceFCN) are measured by their recall.

    Args:
        output_dir: where the evaluator leaves the predictions.

    Raises:
        DatasetError: no or an unknown evaluator_type, or a package that the evaluator needs is missing.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _EVALUATORS:
        raise DatasetError(
            f"the data set {dataset_name} has evaluator_type {kind}; known are {', '.join(sorted(_EVALUATORS))}."
        )
    return _EVALUATORS[kind](cfg, dataset_name, output_dir)
