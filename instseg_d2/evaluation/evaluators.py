"""Chooses the evaluator of a data set."""

import importlib.util
import logging

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import (
    CityscapesInstanceEvaluator,
    COCOPanopticEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    PascalVOCDetectionEvaluator,
    SemSegEvaluator,
)
from PIL import Image

from ..errors import DatasetError
from ..methods import method_of
from .coco import CocoEvaluator, LvisEvaluator
from .panoptic_quality import PanopticQualityEvaluator
from .proposal_recall import ProposalRecallEvaluator

__all__ = ["build_evaluator", "check_evaluator", "leaves_out"]

logger = logging.getLogger(__name__)


def _coco(cfg: CfgNode, name: str, output_dir: str) -> DatasetEvaluator:
    if method_of(cfg).class_agnostic(cfg):
        return ProposalRecallEvaluator(name, output_dir)
    # The fast COCOeval is in Detectron2's compiled library, which may be missing.
    compiled = importlib.util.find_spec("detectron2._C") is not None
    return CocoEvaluator(
        name,
        output_dir=output_dir,
        max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
        use_fast_impl=compiled,
    )


def _lvis(cfg: CfgNode, name: str, output_dir: str) -> LvisEvaluator:
    return LvisEvaluator(name, output_dir=output_dir, max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE)


def _cityscapes(cfg: CfgNode, name: str, output_dir: str) -> CityscapesInstanceEvaluator:
    return CityscapesInstanceEvaluator(name)


def _read_labels(file: str, dtype) -> np.ndarray:
    """Read a semantic map; Detectron2's own reader fails with NumPy 2."""
    return np.asarray(Image.open(file)).astype(dtype)


def _sem_seg(cfg: CfgNode, name: str, output_dir: str) -> SemSegEvaluator:
    return SemSegEvaluator(name, output_dir=output_dir, sem_seg_loading_fn=_read_labels)


def _panoptic(cfg: CfgNode, name: str, output_dir: str) -> DatasetEvaluator:
    if not method_of(cfg).panoptic(cfg):
        return _coco(cfg, name, output_dir)
    parts = [_coco(cfg, name, output_dir), _sem_seg(cfg, name, output_dir)]
    if importlib.util.find_spec("panopticapi") is not None:
        return DatasetEvaluators([*parts, COCOPanopticEvaluator(name, output_dir)])
    logger.info(
        "panopticapi is not installed (pip install git+https://github.com/cocodataset/panopticapi.git): instseg_d2 "
        "computes the panoptic quality of %s itself, by the same definition.",
        name,
    )
    return DatasetEvaluators([*parts, PanopticQualityEvaluator(name)])


def _pascal_voc(cfg: CfgNode, name: str, output_dir: str) -> PascalVOCDetectionEvaluator:
    return PascalVOCDetectionEvaluator(name)


_EVALUATORS = {
    "cityscapes_instance": _cityscapes,
    "coco": _coco,
    "coco_panoptic_seg": _panoptic,
    "lvis": _lvis,
    "pascal_voc": _pascal_voc,
    "sem_seg": _sem_seg,
}
_PACKAGES = {"cityscapes_instance": "cityscapesscripts", "lvis": "lvis"}  # that they need


def check_evaluator(dataset_name: str) -> str:
    """
    The ``evaluator_type`` in a data set's metadata.

    Raises:
        DatasetError: evaluator_type is missing or unknown, or the evaluator needs a package that is not installed.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type")
    if kind not in _EVALUATORS:
        raise DatasetError(
            f"the data set {dataset_name} has evaluator_type {kind}; it must be one of "
            f"{', '.join(sorted(_EVALUATORS))}."
        )
    package = _PACKAGES.get(kind)
    if package and importlib.util.find_spec(package) is None:
        raise DatasetError(f"evaluating {dataset_name} needs the package {package}: pip install {package}.")
    return kind


def leaves_out(dataset_name: str) -> bool:
    """True if the data set's evaluator excludes images that were not processed, and their objects."""
    kind = check_evaluator(dataset_name)
    return kind in ("coco", "sem_seg") or (kind == "coco_panoptic_seg" and not importlib.util.find_spec("panopticapi"))


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str, *, instances_only: bool = False
) -> DatasetEvaluator:
    """
    The evaluator for the ``evaluator_type`` in the data set's metadata: coco, lvis, cityscapes_instance,
    coco_panoptic_seg, pascal_voc or sem_seg. The APs of COCO and LVIS count up to ``TEST.DETECTIONS_PER_IMAGE``
    detections per image. Class-agnostic proposals are measured by their recall.

    Args:
        output_dir: folder for the predictions.
        instances_only: leave out the maps of a panoptic data set.

    Raises:
        DatasetError: see :func:`check_evaluator`.
    """
    kind = check_evaluator(dataset_name)
    if dataset_name in DatasetCatalog and not MetadataCatalog.get(dataset_name).get("thing_classes"):
        DatasetCatalog.get(dataset_name)  # sets the file that the evaluator must read
    if instances_only and kind == "coco_panoptic_seg":
        kind = "coco"
    return _EVALUATORS[kind](cfg, dataset_name, output_dir)
