"""
Losses of ISTR (eq. 3-8) for all heads at once, in float32.

N images, Q queries per image, T heads, M objects, P pairs per head, K classes, L length of a mask code, S side of an
encoded mask.
"""

from collections.abc import Sequence
from typing import Optional

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from fvcore.nn import sigmoid_focal_loss

from ...config.istr import istr_value, istr_version
from ...layers import check_choice, untouched_statistics
from ..losses import mean_over_workers, paired_giou_loss
from .embedding import MaskEmbedding, mask_dice_losses
from .pilots import Pilots
from .refinement import Predictions
from .targets import Matcher, Targets

MASK_LOSSES = ("both", "l2", "dice")


class ISTRCriterion:
    """
    Matches queries and objects, then computes classification, box and mask losses.

    Args:
        matcher: a `Matcher`.
        version: 1 (squared error of the codes, targets cropped to the objects' boxes) or 2 (smooth L1 error, targets
            cropped to the refined boxes). It also decides the suffixes of the losses.
        num_heads: number of heads of the model, for the suffixes.
        weights: weights of the losses "class", "l1", "giou", "code" and "dice".
        alpha, gamma: of the focal loss.
        mask_loss: "l2" (codes), "dice" (decoded masks) or "both".
    """

    def __init__(
        self,
        *,
        matcher: Matcher,
        version: int,
        num_heads: int,
        weights: dict[str, float],
        alpha: float = 0.25,
        gamma: float = 2.0,
        mask_loss: str = "both",
    ):
        check_choice("mask_loss", mask_loss, MASK_LOSSES)
        self.matcher = matcher
        self.version = version
        self.num_heads = num_heads
        self.weights = weights
        self.alpha = alpha
        self.gamma = gamma
        self.mask_loss = mask_loss

    @classmethod
    def from_config(cls, cfg) -> "ISTRCriterion":
        """The criterion of MODEL.ISTR."""
        node, version = cfg.MODEL.ISTR, istr_version(cfg)
        mask_weight = istr_value(cfg, "MASK_WEIGHT")
        shared = {
            "weights": {
                "class": node.CLASS_WEIGHT,
                "l1": node.L1_WEIGHT,
                "giou": node.GIOU_WEIGHT,
                "code": mask_weight if version == 1 else node.FEAT_WEIGHT,
                "dice": mask_weight,
            },
            "alpha": node.ALPHA,
            "gamma": node.GAMMA,
        }
        return cls(
            matcher=Matcher(**shared, mask_cost=node.MASK_COST, noise=node.ENCODE_NOISE),
            version=version,
            num_heads=node.NUM_HEADS,
            mask_loss=node.MASK_LOSS,
            **shared,
        )

    def __call__(
        self,
        predictions: Predictions,
        gt_instances: Sequence[Instances],
        embedding: MaskEmbedding,
        pilots: Optional[tuple[Pilots, Predictions]] = None,
    ) -> dict[str, torch.Tensor]:
        """
        The weighted losses of every head: loss_ce, loss_bbox, loss_giou, loss_feat and loss_dice, with suffixes.

        Args:
            pilots: they and the predictions for them; their losses are called loss_pilot_ce, ....
        """
        with torch.autocast(predictions.boxes.device.type, enabled=False):
            predictions = predictions.float()
            targets = Targets(gt_instances, embedding.size, refined=self.version == 2)
            matches = self.matcher(predictions, targets, embedding)
            losses = self._losses(predictions, targets, matches, sum(targets.counts), embedding)
            if pilots is not None:
                known, predictions = pilots
                rows, objects = (x.expand(len(predictions.boxes), -1) for x in (known.rows, known.objects))
                matches = rows, objects, known.pairs
                with untouched_statistics(embedding):
                    own = self._losses(predictions.float(), targets, matches, sum(known.pairs), embedding)
                losses.update({name.replace("loss", "loss_pilot"): loss for name, loss in own.items()})
            return losses

    def _losses(self, predictions: Predictions, targets: Targets, matches, count: int, embedding) -> dict:
        """``count``: by what the losses are divided, as a mean over all workers."""
        rows, objects, pairs = matches
        num_heads = len(rows)
        head = torch.arange(num_heads, device=rows.device)[:, None]
        image = targets.image[objects]
        logits, boxes = predictions.class_logits, predictions.boxes[head, image, rows]
        count = mean_over_workers(boxes.new_full((), count)).clamp(min=1)

        labels = torch.zeros_like(logits)
        labels[head, image, rows, targets.classes[objects]] = 1.0
        focal = sigmoid_focal_loss(logits, labels, self.alpha, self.gamma, reduction="none")
        gt_boxes, scale = targets.boxes[objects], targets.scale[image]
        giou = paired_giou_loss(boxes.flatten(0, 1), gt_boxes.flatten(0, 1))
        sums = {
            "loss_ce": (self.weights["class"], focal.sum((1, 2, 3))),
            "loss_bbox": (self.weights["l1"], (boxes / scale - gt_boxes / scale).abs().sum((1, 2))),
            "loss_giou": (self.weights["giou"], giou.view(num_heads, -1).sum(1)),
        }

        crops = targets.crop(objects, boxes, pairs) if self.version == 2 else targets.crops[objects]
        codes = predictions.codes[head, image, rows]
        if self.mask_loss != "dice":
            target_codes = embedding.encode(crops.flatten(0, 1)).view_as(codes)
            error = F.mse_loss if self.version == 1 else F.smooth_l1_loss
            error = error(codes, target_codes, reduction="none").sum((1, 2)) / codes.shape[-1]
            sums["loss_feat"] = (self.weights["code"], error)
        if self.mask_loss != "l2":
            sums["loss_dice"] = (self.weights["dice"], self._dice(predictions, codes, crops, image, rows, embedding))
        return {
            f"{name}{self._suffix(self.num_heads - num_heads + i)}": weight * value / count
            for name, (weight, values) in sums.items()
            for i, value in enumerate(values)
        }

    @staticmethod
    def _dice(predictions: Predictions, codes, crops, image, rows, embedding: MaskEmbedding) -> torch.Tensor:
        """
        1 - dice of the decoded masks, summed over the pairs: (T,).

        Each head is decoded on its own, because the batch norm of a learned decoder normalises over the batch.
        """
        losses = []
        num_queries = predictions.boxes.shape[2]
        for i in range(len(codes)):
            features = predictions.decoder_features
            if features is not None:
                features = features[i][image[i] * num_queries + rows[i]]
            losses.append(mask_dice_losses(embedding.decode(codes[i], features), crops[i]).sum())
        return torch.stack(losses)

    def _suffix(self, head: int) -> str:
        """Version 1 numbers all heads but the last, version 2 all heads."""
        return "" if self.version == 1 and head == self.num_heads - 1 else f"_{head}"
