"""
EmbedMask transcribed from its paper and the details of its three versions, from a backbone's maps on: every location,
object and window by itself. Nothing of instseg_d2 is used, but the names of its parameters.

N images, E dimensions of the embedding, h x w cells of a map, H x W pixels.
"""

import math

import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

SPLIT = (64, 128, 256, 512)  # the longest side of a box that each level still takes
VERSIONS = {
    "v1": {"EMBED_DIM": 32, "BOX_PADDING": 0.1, "MASK_TH": 0.5},
    "v2": {"EMBED_DIM": 8, "BOX_PADDING": 0.1, "MASK_TH": 0.53},
    "v3": {"EMBED_DIM": 16, "BOX_PADDING": -1.0, "MASK_TH": 0.53},
}
DEFAULTS = {
    "INFERENCE_TH": 0.05,
    "NMS_TH": 0.6,
    "PRE_NMS_TOP_N": 1000,
    "IOU_LOSS_TYPE": "giou",
    "CENTER_ON": True,
    "SAMPLE_IN_MASK": True,
    "FIX_MARGIN": False,
    "MASK_SCALE_FACTOR": 2,
    "EMBED_REDUCE_FACTOR": 1.0,
    "MARGIN_REDUCE_FACTOR": 32.0,
    "BOX_TO_MARGIN_SCALE": 800.0,
    "INCLUSIVE_BOXES": False,
}
FIXED_MARGIN = -math.log(0.5) / 2**2


def lovasz_hinge(logits, labels):
    """Errors from the largest on, each weighted by how much it raises the Jaccard loss (which has no gradient)."""
    errors, order = (1 - logits * (2 * labels.float() - 1)).sort(descending=True)
    hits, ranks, total = labels[order].cumsum(0), torch.arange(1, len(labels) + 1), labels.sum()
    jaccard = 1 - (total - hits) / (total + ranks - hits)
    return (F.relu(errors) * jaccard.diff(prepend=torch.zeros(1))).sum()


def cells_inside(low, high, size):
    """A map (h, w) of ``size``: whether low <= c < high for the cell's x and y."""
    ys, xs = (torch.arange(n, dtype=torch.float32) for n in size)
    return ((ys >= low[1]) & (ys < high[1]))[:, None] & (xs >= low[0]) & (xs < high[0])


def iou(a, b, end):
    """Of two boxes; with ``end`` 1, x2 and y2 are their last pixels."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + end
    height = min(a[3], b[3]) - max(a[1], b[1]) + end
    common = max(width, 0) * max(height, 0)
    areas = [(x2 - x1 + end) * (y2 - y1 + end) for x1, y1, x2, y2 in (a, b)]
    union = sum(areas) - common
    return common / union if union > 0 else 0.0


def nms(boxes, scores, classes, threshold, end):
    """Indices of the kept boxes, best first, class by class."""
    kept = []
    corners = boxes.tolist()
    for i in scores.argsort(descending=True).tolist():
        if all(classes[i] != classes[k] or iou(corners[i], corners[k], end) <= threshold for k in kept):
            kept.append(i)
    return kept


def box_loss(found, wanted, kind):
    """Of distances (4,) to the sides."""
    inter, hull = torch.minimum(found, wanted), torch.maximum(found, wanted)
    areas = [(x[0] + x[2]) * (x[1] + x[3]) for x in (found, wanted, inter, hull)]
    union, hull = areas[0] + areas[1] - areas[2], areas[3] + 1e-7
    value = (areas[2] + 1) / (union + 1)
    return {"iou": -value.log(), "linear_iou": 1 - value, "giou": 1 - (value - (hull - union) / hull)}[kind]


class EmbedMaskOracle:
    """
    Args:
        weights: {name: parameter or buffer} of the model; training: batch norms take the statistics of the batch.
        keys: of MODEL.EMBED_MASK where they are not the version's and the sheet's own.
        features: (N, C, h, w) of P3 to P7; canvas: (H, W) of the padded batch; sizes: (H, W) of each image in it.
    """

    def __init__(self, version, keys, weights, features, canvas, sizes, training):
        self.version, self.weights, self.training = version, weights, training
        self.keys = {**DEFAULTS, **VERSIONS[version], **keys}
        self.canvas, self.sizes = canvas, sizes
        self.end = int(self.keys["INCLUSIVE_BOXES"])
        self.strides = [8 * 2**level for level in range(len(features))]
        self.stride = 8 // self.keys["MASK_SCALE_FACTOR"]
        self.levels = [self._level(level, x) for level, x in enumerate(features)]
        x = self._tower("pixel_head.tower", features[0], 0) / self.keys["EMBED_REDUCE_FACTOR"]
        x = self._with_position(self._conv("pixel_head.embedding", x), 8)
        self.pixels = F.interpolate(x, scale_factor=self.keys["MASK_SCALE_FACTOR"], mode="bilinear")

    def _conv(self, name, x):
        return F.conv2d(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], padding=1)

    def _tower(self, name, x, level):
        index = 0
        while f"{name}.blocks.{index}.conv.weight" in self.weights:
            block = f"{name}.blocks.{index}"
            weight, bias = (self.weights[f"{block}.conv.{part}"] for part in ("weight", "bias"))
            if f"{block}.offset.weight" in self.weights:
                moves = self._conv(f"{block}.offset", x)
                x = deform_conv2d(x, moves[:, :18], weight, bias, padding=1, mask=moves[:, 18:].sigmoid())
            else:
                x = F.conv2d(x, weight, bias, padding=1)
            norm = {
                part: self.weights.get(f"{block}.norm.{part}", self.weights.get(f"{block}.level_norms.{level}.{part}"))
                for part in ("weight", "bias", "running_mean", "running_var")
            }
            if norm["running_mean"] is not None:
                statistics = (None, None) if self.training else (norm["running_mean"], norm["running_var"])
                x = F.batch_norm(x, *statistics, norm["weight"], norm["bias"], self.training)
            elif norm["weight"] is not None:
                x = F.group_norm(x, 32, norm["weight"], norm["bias"])
            x, index = F.relu(x), index + 1
        return x

    def _locations(self, height, width, stride):
        return [[(x * stride + stride // 2, y * stride + stride // 2) for x in range(width)] for y in range(height)]

    def _with_position(self, embedding, stride):
        """v2, v3: position_scale * (x, y) / 100 added to the first two dimensions."""
        if self.version == "v1":
            return embedding
        xy = torch.tensor(self._locations(*embedding.shape[-2:], stride)).permute(2, 0, 1)
        position = self.weights["position_scale"] * xy / 100
        return torch.cat([embedding[:, :2] + position, embedding[:, 2:]], 1)

    def _level(self, level, x):
        """Maps of class logits, distances in strides, centerness logits, embeddings and margins."""
        head, stride = "proposal_generator.head", self.strides[level]
        tower = self._tower(f"{head}.box_tower", x, level)
        distances = F.relu(self._conv(f"{head}.box_distances", tower) * self.weights[f"{head}.scales.{level}"])
        embedding = self._conv("proposal_head.embedding", tower / self.keys["EMBED_REDUCE_FACTOR"])
        if self.version == "v1":
            scale = self.keys["BOX_TO_MARGIN_SCALE"]
            scale = min(self.canvas) if scale < 0 else scale
            weight = self.weights["proposal_head.box_margin.weight"][:, :, None, None]
            margin = F.conv2d(
                distances.detach() * stride / scale, weight, self.weights["proposal_head.box_margin.bias"]
            ).exp()
        elif self.keys["FIX_MARGIN"]:
            margin = torch.full_like(embedding[:, :1], FIXED_MARGIN)
        else:
            margin = self._conv("proposal_head.margin", tower / self.keys["MARGIN_REDUCE_FACTOR"])
            if self.version == "v3":
                margin = torch.cat(
                    [margin[:, :2] * self.weights[f"proposal_head.margin_scales.{level}"], margin[:, 2:]], 1
                )
            margin = margin.exp()
        logits = self._conv(f"{head}.class_logits", self._tower(f"{head}.class_tower", x, level))
        quality = self._conv(f"{head}.quality_logits", tower)
        return logits, distances, quality, self._with_position(embedding, stride), margin

    def _log_probability(self, image, embedding, margin):
        """log phi of every cell of the image's pixel embeddings: (h, w)."""
        if self.keys["FIX_MARGIN"]:
            margin = torch.full_like(margin, FIXED_MARGIN)
        difference = self.pixels[image] - embedding[:, None, None]
        return -(margin[:, None, None] * difference**2).sum(0)

    def _inside(self, low, high):
        return cells_inside(low, high, self.pixels.shape[-2:])

    @torch.no_grad()
    def detections(self, outputs):
        """For each image (boxes, scores, classes, masks) at the size (H, W) that ``outputs`` says."""
        return [self._detections(image, size) for image, size in enumerate(outputs)]

    def _detections(self, image, size):
        found, (height, width) = [], self.sizes[image]
        for stride, maps in zip(self.strides, self.levels):
            logits, distances, quality, embeddings, margins = (x[image] for x in maps)
            candidates = []
            for y, row in enumerate(self._locations(*logits.shape[-2:], stride)):
                for x, (px, py) in enumerate(row):
                    for label, p in enumerate(logits[:, y, x].sigmoid().tolist()):
                        if p > self.keys["INFERENCE_TH"]:
                            l, t, r, b = (distances[:, y, x] * stride).tolist()
                            right, bottom = width - self.end, height - self.end
                            corners = zip((px - l, py - t, px + r, py + b), (right, bottom, right, bottom))
                            box = [min(max(corner, 0), last) for corner, last in corners]
                            score = p * float(quality[0, y, x].sigmoid())
                            candidates.append((score, box, label, embeddings[:, y, x], margins[:, y, x]))
            candidates.sort(key=lambda x: -x[0])
            found += candidates[: self.keys["PRE_NMS_TOP_N"]]
        scores, boxes, classes, embeddings, margins = zip(*found)
        scores, boxes = torch.tensor(scores), torch.tensor(boxes)
        kept = nms(boxes, scores, classes, self.keys["NMS_TH"], self.end)[:100]
        masks = [self._mask(image, boxes[i], embeddings[i], margins[i], size) for i in kept]
        scale = torch.tensor([size[1] / width, size[0] / height] * 2)
        boxes = boxes[kept] * scale + torch.tensor([0, 0, self.end, self.end])
        boxes = torch.minimum(boxes.clamp(min=0), torch.tensor([size[1], size[0]] * 2))
        real = (boxes[:, 2:] > boxes[:, :2]).all(1)
        classes = torch.tensor([classes[i] for i in kept])
        return boxes[real], scores[kept][real], classes[real], torch.stack(masks)[real]

    def _mask(self, image, box, embedding, margin, size):
        x1, y1, x2, y2 = (box / self.stride).tolist()
        values, fill = self._log_probability(image, embedding, margin), -10.0
        threshold = self.keys["MASK_TH"]
        if self.version == "v3":
            inside = self._inside((int(x1) - 2, int(y1) - 2), (int(x2) + 2, int(y2) + 2))
            threshold = math.log(threshold)
        else:
            values, fill = values.exp(), 0.0
            inside = self._inside((x1 - 1, y1 - 1), (x2 + 1, y2 + 1))
        values = torch.where(inside, values, fill)
        sides = zip(values.shape, size, self.sizes[image])
        canvas = [math.ceil(self.stride * cells * to / of) for cells, to, of in sides]
        values = F.interpolate(values[None, None], canvas, mode="bilinear")[0, 0]
        return values[: size[0], : size[1]] > threshold

    def _assigned(self, objects):
        """For each level, {(image, y, x): (object, distances in strides)} of its positive locations."""
        levels = []
        for stride, low, high, maps in zip(self.strides, (-1, *SPLIT), (*SPLIT, math.inf), self.levels):
            positives = {}
            for image, (boxes, _, masks) in enumerate(objects):
                for y, row in enumerate(self._locations(*maps[0].shape[-2:], stride)):
                    for x, (px, py) in enumerate(row):
                        best = math.inf
                        for k, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
                            reach = 1.5 * stride if self.keys["CENTER_ON"] else math.inf
                            left, right = max(x1, (x1 + x2) / 2 - reach), min(x2, (x1 + x2) / 2 + reach)
                            top, bottom = max(y1, (y1 + y2) / 2 - reach), min(y2, (y1 + y2) / 2 + reach)
                            sides = (px - x1, py - y1, x2 - px, y2 - py)
                            area = (x2 - x1 + self.end) * (y2 - y1 + self.end)
                            on_object = px < masks.shape[2] and py < masks.shape[1] and bool(masks[k, py, px])
                            if (
                                left < px < right
                                and top < py < bottom
                                and low <= max(sides) <= high
                                and area < best
                                and (on_object or not self.keys["SAMPLE_IN_MASK"])
                            ):
                                best = area
                                positives[image, y, x] = (k, torch.tensor(sides) / stride)
            levels.append(positives)
        return levels

    def losses(self, objects):
        """
        The weighted losses.

        Args:
            objects: for each image boxes (M, 4), whose x2, y2 are their last pixels if boxes are inclusive, classes
                (M,) and masks (M, H, W) bool on the unpadded image.
        """
        objects = [
            (boxes, classes, F.pad(masks, (0, self.canvas[1] - masks.shape[2], 0, self.canvas[0] - masks.shape[1])))
            for boxes, classes, masks in objects
        ]
        positives = self._assigned(objects)
        count = max(1, sum(map(len, positives)))
        classes, box, center, weight = 0.0, 0.0, 0.0, 0.0
        for (logits, distances, quality, *_), places in zip(self.levels, positives):
            labels = torch.zeros_like(logits)
            for (image, y, x), (k, wanted) in places.items():
                labels[image, objects[image][1][k], y, x] = 1
                l, t, r, b = wanted.tolist()
                centerness = math.sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))
                box = box + centerness * box_loss(distances[image, :, y, x], wanted, self.keys["IOU_LOSS_TYPE"])
                logit = quality[image, 0, y, x]
                center = center - centerness * F.logsigmoid(logit) - (1 - centerness) * F.logsigmoid(-logit)
                weight += centerness
            p = logits.sigmoid()
            classes = classes - (0.25 * labels * (1 - p) ** 2 * F.logsigmoid(logits)).sum()
            classes = classes - (0.75 * (1 - labels) * p**2 * F.logsigmoid(-logits)).sum()
        nothing = 0 * sum(x.sum() for maps in self.levels for x in maps) + 0 * self.pixels.sum()
        losses = {"loss_cls": classes / count, "loss_reg": box / weight if weight else nothing}
        losses["loss_centerness"] = center / count + nothing
        mask, smooth = nothing, nothing
        for image, (boxes, _, masks) in enumerate(objects):
            found = [self._object_losses(image, k, boxes[k], masks[k], positives) for k in range(len(boxes))]
            found = [x for x in found if x is not None]
            if found:
                mask = mask + sum(x[0] for x in found) / (len(boxes) if self.version == "v1" else len(found))
                smooth = smooth + sum(x[1] for x in found) / len(boxes)
        losses["mask_loss"] = 0.5 * mask / len(objects)
        if self.version == "v1":
            losses["smooth_loss"] = 0.1 * smooth / len(objects)
        return losses

    def _object_losses(self, image, index, box, mask, positives):
        """The Lovasz hinge of an object's proposal and how far its candidates scatter; None without positives."""
        candidates, ious = [], []
        for stride, maps, places in zip(self.strides, self.levels, positives):
            for (where, y, x), (k, _) in places.items():
                if (where, k) == (image, index):
                    px, py = x * stride + stride // 2, y * stride + stride // 2
                    l, t, r, b = (maps[1][image, :, y, x].detach() * stride).tolist()
                    ious.append(iou((px - l, py - t, px + r, py + b), box.tolist(), self.end))
                    candidates.append(torch.cat([maps[3][image, :, y, x], maps[4][image, :, y, x]]))
        if not candidates:
            return None
        best = max(ious)
        if self.version == "v1":
            good = [x for x, value in zip(candidates, ious) if value > 0.5]
            chosen = torch.stack(good or [x for x, value in zip(candidates, ious) if value == best])
        else:
            chosen = candidates[ious.index(best)][None]
        proposal = chosen.mean(0)
        log_p = self._log_probability(
            image, *proposal.split([len(self.pixels[0]), len(proposal) - len(self.pixels[0])])
        )
        target = F.interpolate(mask[None, None].float(), log_p.shape, mode="bilinear")[0, 0] > 0
        x1, y1, x2, y2 = (box / self.stride).tolist()
        padding = self.keys["BOX_PADDING"]
        if padding >= 0:
            right, down = padding * (x2 - x1) + 1, padding * (y2 - y1) + 1
            inside = self._inside((x1 - right, y1 - down), (x2 + right, y2 + down))
            log_p, target = log_p[inside], target[inside]
        logits = self.probability_logits(log_p.flatten())
        return lovasz_hinge(logits, target.flatten()), ((chosen - proposal) ** 2).sum()

    def probability_logits(self, log_p):
        """log(p / (1 - p)); p is at least 1e-9 in v2 and v3, and at most the greatest float32 below 1."""
        if self.version != "v1":
            log_p = log_p.exp().clamp(min=1e-9).log()
        return log_p - (1 - log_p.exp()).clamp(min=2.0**-24).log()
