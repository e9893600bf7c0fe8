"""
Matching and losses of SparseInst (section 3.5 of the paper), in float32 even under autocast.

N images, Q slots per image, M_i objects in image i, P matched pairs, K classes, h x w cells of the predicted masks.
"""

import functools
import logging
import math
from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from fvcore.nn import sigmoid_focal_loss

from ..losses import mean_over_workers
from ..losses.dice import paired_dice, pairwise_dice
from ..matching import match_by_score
from .pilots import MOST, pilot_maps
from .targets import centres_of_mass, resized_targets, shares_of_cells
from .tiles import places

logger = logging.getLogger(__name__)

DICE_EPSILON = 1e-4  # the authors'
MAP_EPSILON = 1e-3  # of the share of a map inside its object
LOSS_ITEMS = ("labels", "masks")


@functools.cache
def warn_too_many_objects(num_masks: int) -> None:
    """Warn once per process that an image has more objects than there are slots."""
    logger.warning(
        "An image has more objects than MODEL.SPARSE_INST.DECODER.NUM_MASKS %d; training goes on without the worst "
        "matches, but for crowded images increase NUM_MASKS.",
        num_masks,
    )


class SparseInstCriterion:
    """
    Hungarian matching, then classification, mask, dice and objectness losses.

    Args:
        alpha, beta: exponents of dice and class probability in the matching score.
        weights: weights of loss_ce, loss_mask, loss_dice and loss_objectness, and of loss_map (0: not computed).
        items: "labels" for loss_ce, "masks" for the other three.
        binarise: threshold of predicted masks for the objectness target, an IoU.
        sigma: with the tiled start, the matching score falls off with the distance between an object and the slot's
            place, like a Gaussian of this standard deviation, in distances between slots. 0: it does not.
        pilots: for each object, so many `Pilots` have the losses, too.
    """

    def __init__(
        self,
        *,
        alpha: float,
        beta: float,
        weights: dict[str, float],
        items: Sequence[str],
        binarise: float = 0.4,
        sigma: float = 0.0,
        pilots: int = 0,
    ):
        unknown = set(items) - set(LOSS_ITEMS)
        if unknown:
            raise ValueError(f"items contains {', '.join(sorted(unknown))}; use {' and '.join(LOSS_ITEMS)}")
        self.alpha = alpha
        self.beta = beta
        self.weights = weights
        self.items = tuple(items)
        self.binarise = binarise
        self.sigma = sigma
        self.pilots = pilots

    @classmethod
    def from_config(cls, cfg) -> "SparseInstCriterion":
        """The criterion of MODEL.SPARSE_INST."""
        loss, matcher = cfg.MODEL.SPARSE_INST.LOSS, cfg.MODEL.SPARSE_INST.MATCHER
        return cls(
            alpha=matcher.ALPHA,
            beta=matcher.BETA,
            weights={
                "loss_ce": loss.CLASS_WEIGHT,
                "loss_mask": loss.MASK_PIXEL_WEIGHT,
                "loss_dice": loss.MASK_DICE_WEIGHT,
                "loss_objectness": loss.OBJECTNESS_WEIGHT,
                "loss_map": loss.MAP_WEIGHT,
            },
            items=loss.ITEMS,
            sigma=matcher.SIGMA,
            pilots=loss.PILOTS,
        )

    @torch.no_grad()
    def match(self, class_logits, mask_logits, gt_classes: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]):
        """
        Match slots and objects by the score p_i[class_j]^beta * dice(m_i, gt_j)^alpha (eq. 4).

        Args:
            class_logits: (N, Q, K).
            mask_logits: (N, Q, h, w).
            gt_classes: (M_i,) for each image.
            targets: (M_i, h, w) for each image.

        Returns:
            see `match_by_score`.
        """
        scores = []
        for logits, masks, classes, target in zip(class_logits, mask_logits, gt_classes, targets):
            dice = pairwise_dice(masks.float().sigmoid().flatten(1), target.flatten(1), DICE_EPSILON)
            score = logits.float().sigmoid()[:, classes] ** self.beta * dice**self.alpha
            scores.append(score * self._nearness(target, len(score)) if self.sigma else score)
        return match_by_score(scores)

    def _nearness(self, target: torch.Tensor, num_slots: int) -> torch.Tensor:
        """exp(-d^2 / (2 sigma^2)) for the distances d of slots' places and objects (M, h, w): (Q, M)."""
        sigma = self.sigma * 2 / math.sqrt(num_slots)
        distances = torch.cdist(places(num_slots).to(target), centres_of_mass(target))
        return torch.exp(-(distances**2) / (2 * sigma**2))

    def __call__(
        self,
        outputs: dict[str, torch.Tensor],
        gt_instances: Sequence[Instances],
        canvas: tuple,
        decoder: Optional[torch.nn.Module] = None,
    ) -> dict:
        """
        Args:
            outputs: of the decoder.
            canvas: (H, W) of the padded batch.
            decoder: needed for pilots.

        Returns:
            the weighted losses: loss_ce, loss_mask, loss_dice, loss_objectness; loss_map if it has a weight; the first
            four again for pilots, as loss_pilot_ce, ....
        """
        with torch.autocast(outputs["mask_logits"].device.type, enabled=False):
            losses = self._losses(outputs, gt_instances, canvas)
        return {**losses, **self._pilot_losses(outputs, gt_instances, canvas, decoder)} if self.pilots else losses

    def _losses(self, outputs, gt_instances, canvas) -> dict:
        class_logits, mask_logits = outputs["class_logits"].float(), outputs["mask_logits"].float()
        size = mask_logits.shape[-2:]
        targets = [resized_targets(x, canvas, size) for x in gt_instances]
        gt_classes = [x.gt_classes for x in gt_instances]
        if max(map(len, gt_instances)) > mask_logits.shape[1]:
            warn_too_many_objects(mask_logits.shape[1])
        matches = self.match(class_logits, mask_logits, gt_classes, targets)
        image = torch.cat([torch.full_like(rows, i) for i, (rows, _) in enumerate(matches)])
        rows = torch.cat([rows for rows, _ in matches])
        counts = torch.tensor([float(sum(map(len, gt_instances))), float(len(rows))])
        counts = counts.to(class_logits.device, non_blocking=True)
        count, pairs = mean_over_workers(counts).clamp(min=1)

        losses = {}
        if "labels" in self.items:
            labels = torch.zeros_like(class_logits)
            classes = torch.cat([classes[columns] for classes, (_, columns) in zip(gt_classes, matches)])
            labels[image, rows, classes] = 1.0
            losses["loss_ce"] = sigmoid_focal_loss(class_logits, labels, 0.25, 2.0, reduction="sum") / count
        if "masks" in self.items:
            logits = mask_logits[image, rows].flatten(1)
            target = torch.cat([t[columns] for t, (_, columns) in zip(targets, matches)]).flatten(1)
            objectness = outputs["objectness_logits"].float()[image, rows]
            losses.update(self._mask_losses(logits, target, objectness, count, pairs))
        if self.weights.get("loss_map"):
            maps = outputs["activation_maps"][:, :, 0].float()
            inside = [shares_of_cells(x, canvas, maps.shape[-2:]) for x in gt_instances]
            inside = torch.cat([target[columns] for target, (_, columns) in zip(inside, matches)])
            losses["loss_map"] = -((maps[image, rows] * inside).sum((1, 2)) + MAP_EPSILON).log().sum() / pairs
        return {name: loss * self.weights[name] for name, loss in losses.items()}

    def _pilot_losses(self, outputs, gt_instances, canvas, decoder) -> dict:
        """The losses of `Pilots`, whose targets are known."""
        features, mask_features = outputs["instance_features"], outputs["mask_features"]
        pilots = pilot_maps(gt_instances, canvas, features.shape[-2:], self.pilots)
        classes, kernels, objectness = decoder.instance_branch.predict(
            pilots.maps.repeat(1, max(decoder.instance_branch.groups, 1), 1), features
        )
        image, rows = (pilots.objects >= 0).nonzero(as_tuple=True)
        found = mean_over_workers(classes.new_tensor(float(len(rows)), dtype=torch.float32)).clamp(min=1)
        with torch.autocast(features.device.type, enabled=False):
            first = torch.tensor([0, *map(len, gt_instances)], device=image.device).cumsum(0)
            objects = first[image] + pilots.objects[image, rows]
            labels = torch.zeros_like(classes, dtype=torch.float32)
            labels[image, rows, torch.cat([x.gt_classes for x in gt_instances])[objects]] = 1.0
            losses = {}
            if "labels" in self.items:
                focal = sigmoid_focal_loss(classes.float(), labels, 0.25, 2.0)[pilots.objects >= -1].sum()
                losses["loss_ce"] = focal / found
            if "masks" in self.items:
                most = max(1, *(min(self.pilots * len(x), MOST) for x in gt_instances))  # those of objects come first
                masks = decoder.masks(kernels[:, :most], mask_features)[image, rows]
                target = torch.cat([resized_targets(x, canvas, masks.shape[-2:]) for x in gt_instances])[objects]
                chosen = objectness.float()[image, rows, 0]
                losses.update(self._mask_losses(masks.flatten(1), target.flatten(1), chosen, found, found))
        return {name.replace("loss", "loss_pilot"): loss * self.weights[name] for name, loss in losses.items()}

    def _mask_losses(self, logits, target, objectness, count, pairs) -> dict:
        """
        Args:
            logits, target: (P, h * w) of the matched pairs.
            objectness: (P,) logits.
            count, pairs: number of objects and of matched pairs, averaged over workers.
        """
        probabilities = logits.sigmoid()
        pixels = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / (pairs * logits.shape[1])
        with torch.no_grad():
            pred, true = probabilities >= self.binarise, target > 0.5
            iou = (pred & true).sum(1) / ((pred | true).sum(1) + 1e-6)
        return {
            "loss_mask": pixels,
            "loss_dice": (1 - paired_dice(probabilities, target, DICE_EPSILON)).sum() / count,
            "loss_objectness": F.binary_cross_entropy_with_logits(objectness, iou, reduction="sum") / pairs,
        }
