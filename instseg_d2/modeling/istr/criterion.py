"""
Matching and losses of ISTR (equations 3 to 8 of the paper). H heads, B images, N queries an image, M objects of the
batch (M_i of image i), P pairs a head, K classes, D numbers of a mask code, S the side of an encoded mask.

Everything is computed in float32, also under autocast, and for all heads at once; the costs make one copy to the host.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from fvcore.nn import sigmoid_focal_loss
from torchvision.ops import generalized_box_iou, generalized_box_iou_loss

from ...config.istr import istr_value, istr_version
from ...errors import ConfigError
from ..losses import mean_over_workers
from ..losses.dice import paired_dice, pairwise_dice
from ..matching import match_by_score
from .heads import Predictions
from .targets import Targets

MASK_COSTS = ("cosine", "l1", "dice")
MASK_LOSSES = ("both", "l2", "dice")


def class_cost(logits: torch.Tensor, classes: torch.Tensor, alpha: float, gamma: float) -> torch.Tensor:
    """The focal loss that query i gains by being class_k rather than background: (..., N, K), (M,) -> (..., N, M)."""
    p = logits.sigmoid()
    positive = alpha * (1 - p) ** gamma * -(p + 1e-8).log()
    negative = (1 - alpha) * p**gamma * -(1 - p + 1e-8).log()
    return (positive - negative)[..., classes]


def code_cost(codes: torch.Tensor, target: torch.Tensor, kind: str) -> torch.Tensor:
    """
    Distance of mask codes, lower is better: -(cos + 1) / 2 or the mean absolute difference (l1).

    Args:
        codes: (H, N, D); target: (H or 1, M, D).

    Returns:
        (H, N, M).
    """
    if kind == "l1":
        return torch.cdist(codes, target.expand(len(codes), -1, -1), p=1) / codes.shape[-1]
    codes, target = F.normalize(codes, dim=-1, eps=1e-12), F.normalize(target, dim=-1, eps=1e-12)
    return -(codes @ target.transpose(1, 2) + 1) / 2


class ISTRCriterion:
    """
    Args:
        version: 1 or 2: squared or smooth L1 error of the codes, targets cropped by the objects' or by the refined
            boxes, suffixes of the losses.
        num_heads: of the model, for the losses' suffixes.
        weights: of the costs and losses "class", "l1", "giou", "code" and "dice".
        alpha, gamma: of the focal loss and cost.
        mask_cost: "cosine", "l1" or "dice"; mask_loss: "both", "l2" (codes) or "dice" (decoded masks).
        noise: codes of the ground truth differ from one encoding to the next, so every head gets its own.
    """

    def __init__(
        self,
        *,
        version: int,
        num_heads: int,
        weights: dict[str, float],
        alpha: float = 0.25,
        gamma: float = 2.0,
        mask_cost: str = "cosine",
        mask_loss: str = "both",
        noise: bool = False,
    ):
        for key, value, allowed in (("MASK_COST", mask_cost, MASK_COSTS), ("MASK_LOSS", mask_loss, MASK_LOSSES)):
            if value not in allowed:
                raise ConfigError(f"MODEL.ISTR.{key} is {value!r}; it must be one of {', '.join(allowed)}.")
        self.version = version
        self.num_heads = num_heads
        self.weights = weights
        self.alpha = alpha
        self.gamma = gamma
        self.mask_cost = mask_cost
        self.mask_loss = mask_loss
        self.noise = noise

    @classmethod
    def from_config(cls, cfg) -> "ISTRCriterion":
        """The criterion of MODEL.ISTR."""
        node, version = cfg.MODEL.ISTR, istr_version(cfg)
        learned_decoder = node.MASK_ENCODING_METHOD == "AE"
        if learned_decoder and node.MASK_COST == "dice":
            raise ConfigError("MODEL.ISTR.MASK_COST dice decodes every query, too much for AE; use cosine or l1.")
        if learned_decoder and node.MASK_LOSS == "l2":
            raise ConfigError("MODEL.ISTR.MASK_LOSS l2 would leave the decoder of AE untrained; use both or dice.")
        mask_weight = istr_value(cfg, "MASK_WEIGHT")
        return cls(
            version=version,
            num_heads=node.NUM_HEADS,
            weights={
                "class": node.CLASS_WEIGHT,
                "l1": node.L1_WEIGHT,
                "giou": node.GIOU_WEIGHT,
                "code": mask_weight if version == 1 else node.FEAT_WEIGHT,
                "dice": mask_weight,
            },
            alpha=node.ALPHA,
            gamma=node.GAMMA,
            mask_cost=node.MASK_COST,
            mask_loss=node.MASK_LOSS,
            noise=node.ENCODE_NOISE,
        )

    def __call__(self, predictions: Predictions, gt_instances: Sequence[Instances], embedding) -> dict:
        """
        The weighted losses of every head: loss_ce, loss_bbox, loss_giou, loss_feat, loss_dice with a suffix.

        Args:
            embedding: a `MaskEmbedding`.
        """
        with torch.autocast(predictions.boxes.device.type, enabled=False):
            features = predictions.decoder_features
            predictions = Predictions(
                *(x.float() for x in predictions[:3]), None if features is None else [x.float() for x in features]
            )
            targets = Targets(gt_instances, embedding.size, refined=self.version == 2)
            matches = self.match(predictions, targets, embedding)
            return self._losses(predictions, targets, matches, embedding)

    @torch.no_grad()
    def match(self, predictions: Predictions, targets: Targets, embedding):
        """
        One-to-one matching of each head and image by the sum of class, box and mask costs.

        Returns:
            rows (H, P) int64: query of each pair inside its image; objects (H, P) int64 index into the batch's
            objects; pairs: how many of the P belong to each image, min(N, M_i).
        """
        num_heads, num_images, num_queries = predictions.boxes.shape[:3]
        scores, first = [], 0
        for image, count in enumerate(targets.counts):
            scores.append(-self._cost(predictions, targets, image, slice(first, first + count), embedding))
            first += count
        # One copy to the host for all heads and images, one back for all pairs.
        on_host = torch.cat([x.flatten() for x in scores]).cpu()
        split = on_host.split([x.numel() for x in scores])
        by_image = [x.view(num_heads, num_queries, count) for x, count in zip(split, targets.counts)]
        matches = match_by_score([by_image[image][head] for head in range(num_heads) for image in range(num_images)])
        starts = torch.tensor([0, *targets.counts]).cumsum(0)
        rows = torch.cat([rows for rows, _ in matches])
        objects = torch.cat([columns + starts[i % num_images] for i, (_, columns) in enumerate(matches)])
        pairs = [min(num_queries, count) for count in targets.counts]
        rows, objects = torch.stack([rows, objects]).view(2, num_heads, sum(pairs)).to(predictions.boxes.device)
        return rows, objects, pairs

    def _cost(self, predictions: Predictions, targets: Targets, image: int, own: slice, embedding) -> torch.Tensor:
        """Weighted costs of one image, whose objects are the slice ``own`` of the batch's: (H, N, M_i)."""
        boxes, gt_boxes, scale = predictions.boxes[:, image], targets.boxes[own], targets.scale[image]
        crops = targets.crops[own]
        cost = self.weights["class"] * class_cost(
            predictions.class_logits[:, image], targets.classes[own], self.alpha, self.gamma
        )
        flat = boxes.flatten(0, 1)
        pairs = self.weights["l1"] * torch.cdist(flat / scale, gt_boxes / scale, p=1)
        pairs -= self.weights["giou"] * generalized_box_iou(flat, gt_boxes)
        cost += pairs.view_as(cost)
        own_codes = predictions.codes[:, image]
        if self.mask_cost == "dice":
            masks = embedding.decode(own_codes.flatten(0, 1)).flatten(1)
            return cost - self.weights["code"] * pairwise_dice(masks, crops.flatten(1), eps=1e-5).view_as(cost)
        copies = len(boxes) if self.noise else 1
        codes = embedding.encode(crops.repeat(copies, 1, 1)).view(copies, len(crops), embedding.dim)
        return cost + self.weights["code"] * code_cost(own_codes, codes, self.mask_cost)

    def _losses(self, predictions: Predictions, targets: Targets, matches, embedding) -> dict:
        rows, objects, pairs = matches
        num_heads = len(rows)
        head = torch.arange(num_heads, device=rows.device)[:, None]
        image = targets.image[objects]
        logits, boxes = predictions.class_logits, predictions.boxes[head, image, rows]
        count = mean_over_workers(boxes.new_tensor(float(sum(targets.counts)))).clamp(min=1)

        labels = torch.zeros_like(logits)
        labels[head, image, rows, targets.classes[objects]] = 1.0
        focal = sigmoid_focal_loss(logits, labels, self.alpha, self.gamma, reduction="none")
        gt_boxes, scale = targets.boxes[objects], targets.scale[image]
        giou = generalized_box_iou_loss(boxes.flatten(0, 1), gt_boxes.flatten(0, 1), eps=0.0)
        sums = {
            "loss_ce": (self.weights["class"], focal.sum((1, 2, 3))),
            "loss_bbox": (self.weights["l1"], (boxes / scale - gt_boxes / scale).abs().sum((1, 2))),
            "loss_giou": (self.weights["giou"], giou.view(num_heads, -1).sum(1)),
        }

        crops = targets.crop(objects, boxes, pairs) if self.version == 2 else targets.crops[objects]
        codes = predictions.codes[head, image, rows]
        if self.mask_loss != "dice":
            wanted = embedding.encode(crops.flatten(0, 1)).view_as(codes)
            error = F.mse_loss if self.version == 1 else F.smooth_l1_loss
            error = error(codes, wanted, reduction="none").sum((1, 2)) / codes.shape[-1]
            sums["loss_feat"] = (self.weights["code"], error)
        if self.mask_loss != "l2":
            sums["loss_dice"] = (self.weights["dice"], self._dice(predictions, codes, crops, image, rows, embedding))
        return {
            f"{name}{self._suffix(self.num_heads - num_heads + i)}": weight * value / count
            for name, (weight, values) in sums.items()
            for i, value in enumerate(values)
        }

    @staticmethod
    def _dice(predictions: Predictions, codes, crops, image, rows, embedding) -> torch.Tensor:
        """1 - dice of the decoded masks, summed over the pairs: (H,). Heads are decoded one by one, as they have to
        be where the decoder normalises over its batch."""
        losses = []
        num_queries = predictions.boxes.shape[2]
        for i in range(len(codes)):
            features = predictions.decoder_features
            if features is not None:
                features = features[i][image[i] * num_queries + rows[i]]
            masks = embedding.decode(codes[i], features)
            losses.append((1 - paired_dice(masks.flatten(1), crops[i].flatten(1), eps=1e-5)).sum())
        return torch.stack(losses)

    def _suffix(self, head: int) -> str:
        """Version 1 numbers all heads but the last, version 2 all."""
        return "" if self.version == 1 and head == self.num_heads - 1 else f"_{head}"
