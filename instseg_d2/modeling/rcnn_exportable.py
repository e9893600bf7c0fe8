"""
Detectron2's R-CNN detectors as functions of tensors.

N images, P proposals an image, K classes, D detections an image, R x R cells of a mask.
"""

from typing import NamedTuple

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.roi_heads import BaseMaskRCNNHead, CascadeROIHeads
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from ..layers import pool_boxes
from ..methods import AutoRecipe, Method, register_method
from .exportable import CropExportable, Exportable, Found, non_maximum_suppression, shared_copy
from .postprocessing import Combination
from .proposal_generator import FCOS
from .proposal_generator.exportable import detect_fixed
from .rcnn_recipe import recipe_rules

__all__ = ["ExportableRCNN", "OfRCNN", "exportable_rcnn"]

CANDIDATES = 10_000  # (proposal, class) pairs an image that NMS sees, the best ones


class Proposals(NamedTuple):
    """boxes: (N, P, 4) in input pixels, inside the image; valid: (N, P) bool, whether there is one."""

    boxes: torch.Tensor
    valid: torch.Tensor


def clip(boxes: torch.Tensor, image_size: torch.Tensor) -> torch.Tensor:
    """Boxes (..., 4) clipped to an image of (2,) height and width."""
    return torch.minimum(boxes.clamp(min=0), image_size.to(boxes.dtype).flip(0).repeat(2))


def rpn_proposals(rpn: RPN, features: dict, image_size: torch.Tensor) -> Proposals:
    """Detectron2's ``find_top_rpn_proposals``: the best of each level, NMS in each level, the best of all."""
    maps = [features[name] for name in rpn.in_features]
    anchors = rpn.anchor_generator(maps)
    parts = []
    for anchor, logits, deltas in zip(anchors, *rpn.rpn_head(maps)):
        logits = logits.permute(0, 2, 3, 1).flatten(1)
        count = min(rpn.pre_nms_topk[False], logits.shape[1])
        logits, index = logits.topk(count, dim=1)
        deltas = deltas.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, -2)
        deltas = deltas.gather(1, index[..., None].expand(-1, -1, 4)).flatten(0, 1)
        boxes = rpn.box2box_transform.apply_deltas(deltas, anchor.tensor[index.flatten()]).unflatten(0, index.shape)
        valid = boxes.isfinite().all(-1) & logits.isfinite()
        boxes = clip(torch.where(valid[..., None], boxes, 0.0), image_size)
        valid = valid & ((boxes[..., 2:] - boxes[..., :2]) > rpn.min_box_size).all(-1)
        order = torch.where(valid, torch.arange(count, 0, -1, device=boxes.device).float(), -1.0)
        keep = non_maximum_suppression(boxes, order, torch.zeros_like(index), rpn.nms_thresh)
        parts.append((boxes, torch.where(keep, logits, -torch.inf)))
    boxes, logits = (torch.cat(x, dim=1) for x in zip(*parts))
    logits, index = logits.topk(min(rpn.post_nms_topk[False], logits.shape[1]), dim=1)
    return Proposals(boxes.gather(1, index[..., None].expand(-1, -1, 4)), logits > -torch.inf)


def fcos_proposals(fcos: FCOS, features: dict, image_size: torch.Tensor) -> Proposals:
    """The boxes of FCOS as proposals."""
    found = detect_fixed(fcos, fcos.outputs(features), image_size)
    return Proposals(clip(found.boxes, image_size), found.scores > 0)


PROPOSAL_GENERATORS = {RPN: rpn_proposals, FCOS: fcos_proposals}


def classify(heads: StandardROIHeads, features: dict, proposals: Proposals, image_size: torch.Tensor):
    """
    The box branch of Detectron2's ROI heads; the scores of a cascade are the mean of its stages.

    Returns:
        boxes: (N, P, 4), or (N, P, 4 * K) with boxes for each class; scores: (N, P, K + 1) with the background.
    """
    stages = [(heads.box_head, heads.box_predictor)]
    if isinstance(heads, CascadeROIHeads):
        stages = list(zip(heads.box_head, heads.box_predictor))
    maps = [features[name] for name in heads.box_in_features]
    boxes, total = proposals.boxes, 0
    for index, (head, predictor) in enumerate(stages):
        inputs = [Boxes(x) for x in (clip(boxes, image_size) if index else boxes)]
        instances = [Instances((1, 1), proposal_boxes=x) for x in inputs]
        predictions = predictor(head(pool_boxes(heads.box_pooler, maps, inputs)))
        boxes = torch.stack(predictor.predict_boxes(predictions, instances))
        total = total + torch.stack(predictor.predict_probs(predictions, instances))
    return boxes, total * (1.0 / len(stages))


def best_boxes(boxes: torch.Tensor, scores: torch.Tensor, valid: torch.Tensor, image_size: torch.Tensor, predictor):
    """
    Detectron2's ``fast_rcnn_inference``: thresholding, NMS in each class, the best of each image.

    Args:
        boxes, scores: see `classify`; valid: (N, P) bool.
        predictor: whose ``test_score_thresh``, ``test_nms_thresh`` and ``test_topk_per_image`` are used.

    Returns:
        scores (N, D), 0 for none, labels (N, D), boxes (N, D, 4) and the proposals' indices (N, D), best first.
    """
    valid = valid & boxes.isfinite().all(-1) & scores.isfinite().all(-1)
    boxes = clip(torch.where(valid[..., None], boxes, 0.0).unflatten(2, (-1, 4)), image_size)
    scores = scores[..., :-1]
    classes = scores.shape[2]
    scores = torch.where((scores > predictor.test_score_thresh) & valid[..., None], scores, -1.0).flatten(1)
    scores, pairs = scores.topk(min(CANDIDATES, scores.shape[1]), dim=1)
    rows = pairs if boxes.shape[2] > 1 else pairs // classes
    boxes = boxes.flatten(1, 2).gather(1, rows[..., None].expand(-1, -1, 4))
    keep = non_maximum_suppression(boxes, scores, pairs % classes, predictor.test_nms_thresh)
    limit = predictor.test_topk_per_image if predictor.test_topk_per_image >= 0 else scores.shape[1]
    scores, index = torch.where(keep, scores, -1.0).topk(min(limit, scores.shape[1]), dim=1)
    pairs, boxes = pairs.gather(1, index), boxes.gather(1, index[..., None].expand(-1, -1, 4))
    return scores.clamp(min=0), pairs % classes, boxes, pairs // classes


def check_heads(heads: StandardROIHeads) -> None:
    """
    Raises:
        ValueError: Detectron2's ROI heads have a part that cannot be exported.
    """
    poolers = [heads.box_pooler, heads.mask_pooler if heads.mask_on else None]
    if not all(isinstance(x, ROIAlign) for pooler in poolers if pooler for x in pooler.level_poolers):
        raise ValueError("only RoIAlign can be exported: set POOLER_TYPE to ROIAlignV2 or ROIAlign.")
    if heads.mask_on and not isinstance(heads.mask_head, BaseMaskRCNNHead):  # such as PointRend's
        raise ValueError(
            f"{type(heads.mask_head).__name__} cannot be exported: choose another MODEL.ROI_MASK_HEAD.NAME."
        )
    if heads.keypoint_on:
        raise ValueError("keypoints cannot be exported: set MODEL.KEYPOINT_ON to False.")


def predictor_of(heads: StandardROIHeads) -> nn.Module:
    """The box predictor whose thresholds are used, of a cascade the last."""
    predictor = heads.box_predictor
    return predictor[-1] if isinstance(predictor, nn.ModuleList) else predictor


def number_of_boxes(heads: StandardROIHeads) -> int:
    """D, the most detections of an image."""
    limit = predictor_of(heads).test_topk_per_image
    return limit if limit >= 0 else CANDIDATES


def heads_with_threshold_moved(model: nn.Module, by: float) -> nn.Module:
    """A copy of a model whose ROI heads have a higher score threshold; it shares the weights."""
    moved, predictor = shared_copy(model), shared_copy(predictor_of(model.roi_heads))
    moved.roi_heads = shared_copy(model.roi_heads)
    predictor.test_score_thresh += by
    if isinstance(moved.roi_heads.box_predictor, nn.ModuleList):
        predictor = nn.ModuleList([*moved.roi_heads.box_predictor[:-1], predictor])
    moved.roi_heads.box_predictor = predictor
    return moved


class OfRCNN(Exportable):
    """What Detectron2's GeneralizedRCNN calls the things that an `Exportable` needs. List it first among the bases."""

    preprocess_name = "preprocess_image"

    @property
    def size_divisibility(self) -> int:
        return self.model.backbone.size_divisibility

    @property
    def mask_threshold(self) -> float:
        return 0.5  # of Detectron2's postprocessing

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.model.pixel_mean) / self.model.pixel_std


class ExportableRCNN(OfRCNN, CropExportable):
    """
    A GeneralizedRCNN or PanopticFPN with Detectron2's ROI heads or a cascade, and any mask head, as one graph.

    Raises:
        ValueError: it has a part that cannot be exported.
    """

    def __init__(self, model: nn.Module):
        super().__init__(model)
        heads, generator = model.roi_heads, model.proposal_generator
        if type(heads) not in (StandardROIHeads, CascadeROIHeads):
            others = [name for name, x in ROI_HEADS_REGISTRY if hasattr(x, "exportable")]
            raise ValueError(
                f"{type(heads).__name__} cannot be exported: MODEL.ROI_HEADS.NAME must be one of StandardROIHeads, "
                f"CascadeROIHeads, {', '.join(others)}."
            )
        if type(generator) not in PROPOSAL_GENERATORS:
            known = " or ".join(x.__name__ for x in PROPOSAL_GENERATORS)
            raise ValueError(
                f"{type(generator).__name__} cannot be exported: MODEL.PROPOSAL_GENERATOR.NAME must be {known}."
            )
        check_heads(heads)

    @property
    def output_names(self) -> tuple[str, ...]:
        masks = ("masks",) if self.model.roi_heads.mask_on else ()
        return ("boxes", "scores", "labels", *masks, *(("sem_seg",) if self.combination is not None else ()))

    @property
    def combination(self):
        model = self.model
        if getattr(model, "sem_seg_head", None) is None:
            return None
        thresholds = model.combine_overlap_thresh, model.combine_stuff_area_thresh
        return Combination(*thresholds, model.combine_instances_score_thresh)

    @property
    def nms_threshold(self) -> float:
        return predictor_of(self.model.roi_heads).test_nms_thresh

    @property
    def detections(self) -> int:
        return number_of_boxes(self.model.roi_heads)

    def threshold_moved(self, by: float) -> nn.Module:
        return heads_with_threshold_moved(self.model, by)

    def found(self, images: ImageList, image_size: torch.Tensor) -> Found:
        model, heads = self.model, self.model.roi_heads
        features = model.backbone(images.tensor)
        proposals = PROPOSAL_GENERATORS[type(model.proposal_generator)](model.proposal_generator, features, image_size)
        boxes, scores = classify(heads, features, proposals, image_size)
        scores, labels, boxes, _ = best_boxes(boxes, scores, proposals.valid, image_size, predictor_of(heads))
        masks = self._masks(features, boxes, labels) if heads.mask_on else None
        semantic = model.sem_seg_head(features)[0] if self.combination is not None else None
        return Found(scores, labels, boxes, masks, semantic=semantic)

    def _masks(self, features: dict, boxes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mask head's probabilities inside boxes (N, D, 4) of classes (N, D): (N, D, R, R)."""
        heads = self.model.roi_heads
        instances = [Instances((1, 1), pred_boxes=Boxes(x), pred_classes=y) for x, y in zip(boxes, labels)]
        maps = {name: features[name] for name in heads.mask_in_features}
        if heads.mask_pooler is not None:
            maps = pool_boxes(heads.mask_pooler, list(maps.values()), [x.pred_boxes for x in instances])
        return torch.stack([x.pred_masks[:, 0] for x in heads.mask_head(maps, instances)])


def exportable_rcnn(model: nn.Module) -> Exportable:
    """The module to export of a GeneralizedRCNN; ROI heads without proposals have their own, ``exportable``."""
    own = getattr(model.roi_heads, "exportable", None)
    return ExportableRCNN(model) if own is None else own(model)


register_method(Method("GeneralizedRCNN", exportable=exportable_rcnn, auto=AutoRecipe(recipe_rules)))
register_method(Method("PanopticFPN", panoptic=lambda cfg: True, exportable=exportable_rcnn))
