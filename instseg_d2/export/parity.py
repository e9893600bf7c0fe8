"""
Verifies an export: the file is run on real images and must find what the PyTorch model finds.

D detections, H x W pixels of a mask.
"""

import copy
import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Optional

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import ImageList, Instances, pairwise_iou
from scipy.optimize import linear_sum_assignment

from ..data.images import read_image
from ..inference.predictor import Predictor
from ..inference.tiles import seen_by_network
from ..methods import method_of
from ..modeling.meta_arch import detect
from ..runtime.sessions import first_line
from .runtime import ExportedPredictor

__all__ = ["Parity", "compare", "reference", "time_both"]

MAX_SCORE_DIFFERENCE = 1e-3
MAX_BOX_DIFFERENCE = 0.5  # pixels of the network's input
MIN_IOU = 0.99
FLIPPED = 2  # pixels in which a mask may always differ: in a small one, one on the edge of the threshold costs 2 %
MIN_MAP_SHARE = 0.999  # of the pixels of a semantic map
NMS_TIE = 1e-4  # of the IoU
# Of detections that are no pair within the limits, so that the difference can be told.
PAIR_SCORE = 0.1


@dataclasses.dataclass
class Parity:
    """
    Result of a comparison.

    Attributes:
        images: how many were compared; detections: how many were matched one to one; masks: of these, not empty.
        score_difference, box_difference: the worst, see the limits above.
        mask_iou: the worst of the masks that differ in more than `FLIPPED` pixels.
        maps: how many semantic maps were compared; map_share: the least share of their pixels that are equal.
        missing, extra: detections of PyTorch's and of the file's that the other does not have.
        pytorch_ms, exported_ms: median milliseconds per batch.
        error: why the file cannot be run.
    """

    has_masks: bool = True
    has_maps: bool = False
    images: int = 0
    detections: int = 0
    masks: int = 0
    missing: int = 0
    extra: int = 0
    score_difference: float = 0.0
    box_difference: float = 0.0
    mask_iou: float = 1.0
    maps: int = 0
    map_share: float = 1.0
    pytorch_ms: float = float("nan")
    exported_ms: float = float("nan")
    error: str = ""

    @property
    def failure(self) -> str:
        """Why the file differs from the model, in one sentence; empty if it does not."""
        if self.error:
            return self.error
        if not self.detections or (self.has_masks and not self.masks):
            what = "with a mask is found by both" if self.has_masks else "is found by both"
            if not self.missing + self.extra:
                return (
                    f"nothing was compared: in {self.images} images no object {what}; give images with objects, or "
                    "trained weights"
                )
        if self.missing:
            return f"{self.missing} detections of PyTorch's are missing"
        if self.extra:
            return f"{self.extra} detections are not PyTorch's"
        if not self.score_difference <= MAX_SCORE_DIFFERENCE:
            return f"scores differ from PyTorch's by {self.score_difference:.2g}, more than {MAX_SCORE_DIFFERENCE}"
        if not self.box_difference <= MAX_BOX_DIFFERENCE:
            return f"a box differs from PyTorch's by {self.box_difference:.2g} pixels, more than {MAX_BOX_DIFFERENCE}"
        if not self.mask_iou >= MIN_IOU:
            return f"a mask has IoU {self.mask_iou:.4f} with PyTorch's, less than {MIN_IOU}"
        if self.has_maps and self.maps != self.images:
            return f"the semantic maps of {self.images - self.maps} images were not compared"
        if not self.map_share >= MIN_MAP_SHARE:
            return f"{self.map_share:.2%} of a semantic map's pixels equal PyTorch's, less than {MIN_MAP_SHARE:.1%}"
        return ""

    def figures(self) -> dict:
        """The result as plain data, for the file's metadata."""
        names = ["images", "detections", "masks", "score_difference", "box_difference", "mask_iou"]
        names += ["maps", "map_share"] if self.has_maps else []
        return {name: getattr(self, name) for name in names}

    def add_map(self, expected: torch.Tensor, found: torch.Tensor) -> None:
        """Compare the semantic maps (H, W) of one image."""
        self.maps += 1
        self.map_share = min(self.map_share, float((expected == found).float().mean()))

    @property
    def summary(self) -> str:
        """The figures in words."""
        maps = f", least share of equal pixels in a semantic map {self.map_share:.2%}" if self.has_maps else ""
        return (
            f"{self.images} images, {self.detections} detections and {self.masks} masks compared: worst score "
            f"difference {self.score_difference:.2g}, worst box difference {self.box_difference:.2g} pixels, worst "
            f"mask IoU {self.mask_iou:.4f}{maps}"
        )

    def add(
        self,
        expected: Instances,
        found: Instances,
        *,
        limit: int,
        scale: float = 1.0,
        moved: Callable = lambda by: (),
        nms_threshold: Optional[float] = None,
    ) -> None:
        """
        Compare the results on one image.

        Args:
            limit: the most detections that either may have.
            scale: output pixels per pixel of the network's input.
            moved: a number -> what PyTorch finds when its threshold is higher by it, a list of Instances.
            nms_threshold: IoU of the model's NMS; None: it has none.
        """
        self.images += 1
        box_limit = MAX_BOX_DIFFERENCE * scale
        pairs, missing, extra = match(expected, found, MAX_SCORE_DIFFERENCE, box_limit)
        if len(missing) + len(extra):
            others = [x for by in (-MAX_SCORE_DIFFERENCE, MAX_SCORE_DIFFERENCE) for x in moved(by)]
            ties = _Ties(limit, others, nms_threshold, box_limit)
            missing, extra = ties.without(expected, found, missing, extra)
        # What is left is compared with what is most like it, so that a failure says by how much it differs.
        loose, lost, more = match(expected[missing], found[extra], PAIR_SCORE, None)
        self.missing += len(lost)
        self.extra += len(more)
        pairs = np.append(pairs[0], missing[loose[0]]), np.append(pairs[1], extra[loose[1]])
        self.detections += len(pairs[0])
        if not len(pairs[0]):
            return
        expected, found = expected[pairs[0]], found[pairs[1]]
        scores = (expected.scores - found.scores).abs().max()
        boxes = (expected.pred_boxes.tensor - found.pred_boxes.tensor).abs().max() / scale
        self.score_difference = max(self.score_difference, float(scores))
        self.box_difference = max(self.box_difference, float(boxes))
        if self.has_masks:
            self._add_masks(expected.pred_masks, found.pred_masks)

    def _add_masks(self, expected: torch.Tensor, found: torch.Tensor) -> None:
        """Compare masks (D, H, W)."""
        for a, b in zip(expected, found):
            either = int((a | b).sum())
            different = int((a ^ b).sum())
            self.masks += either > 0
            if different > FLIPPED:
                self.mask_iou = min(self.mask_iou, 1 - different / either)


def match(expected: Instances, found: Instances, score_limit: float, box_limit: Optional[float]):
    """
    Detections of the same class whose scores and boxes differ by less than limits, one to one.

    Args:
        box_limit: pixels; None: half of the box's longer side.

    Returns:
        indices of the pairs, two arrays; indices without a partner, of the expected ones and of the found ones.
    """
    scores = (expected.scores[:, None] - found.scores).abs()
    boxes = (expected.pred_boxes.tensor[:, None] - found.pred_boxes.tensor).abs().amax(-1)
    if box_limit is None:
        sides = expected.pred_boxes.tensor[:, 2:] - expected.pred_boxes.tensor[:, :2]
        box_limit = sides.amax(1)[:, None].clamp(min=1) / 2
    near = (expected.pred_classes[:, None] == found.pred_classes) & (scores <= score_limit) & (boxes <= box_limit)
    cost = torch.where(near, scores / score_limit + boxes / box_limit, 1e6)
    first, second = linear_sum_assignment(cost.numpy())
    good = near.numpy()[first, second]
    first, second = first[good], second[good]
    without = (np.setdiff1d(np.arange(len(x)), y) for x, y in ((expected, first), (found, second)))
    return (first, second), *without


class _Ties:
    """
    Detections without a partner of which rounding may decide:

    * at the end of a full list of ``limit`` detections;
    * where PyTorch's own model has a detection, or does not, when its threshold ``moved`` a little;
    * where a better detection overlaps one by just the threshold of NMS, and what such a one suppresses.
    """

    def __init__(self, limit: int, moved: Sequence[Instances], nms_threshold: Optional[float], box_limit: float):
        self.limit = limit
        self.moved = moved
        self.nms_threshold = nms_threshold
        self.box_limit = box_limit

    def without(self, expected: Instances, found: Instances, missing, extra):
        """The indices that are left."""
        left = {True: list(missing), False: list(extra)}
        lists = {True: (expected, found), False: (found, expected)}
        ties: list[Instances] = []
        count = -1
        while count != len(ties):
            count = len(ties)
            for is_missing, (own, other) in lists.items():
                for index in list(left[is_missing]):
                    one = own[int(index) : int(index) + 1]
                    if self._decides(one, own, other, ties, is_missing):
                        left[is_missing].remove(index)
                        ties.append(one)
        return (np.array(left[x], dtype=int) for x in (True, False))

    def _decides(self, one: Instances, own: Instances, other: Instances, ties, is_missing: bool) -> bool:
        if len(other) == self.limit and float(one.scores) <= float(other.scores.min()) + MAX_SCORE_DIFFERENCE:
            return True
        for x in self.moved:
            there = len(match(one, x, MAX_SCORE_DIFFERENCE, self.box_limit)[0][0]) > 0
            if there != is_missing:
                return True
        return self.nms_threshold is not None and (
            any(self._overlap(one, x, abs_tie=True) for x in (own, other)) or any(self._overlap(one, x) for x in ties)
        )

    def _overlap(self, one: Instances, others: Instances, abs_tie: bool = False) -> bool:
        """Whether one of the others, of its class, overlaps one by the threshold of NMS; just by it if ``abs_tie``."""
        others = others[(others.pred_classes == one.pred_classes) & (others.scores > one.scores - MAX_SCORE_DIFFERENCE)]
        over = pairwise_iou(one.pred_boxes, others.pred_boxes) - self.nms_threshold
        return bool(((over.abs() if abs_tie else -over) <= NMS_TIE).any())


@torch.no_grad()
def reference(
    predictor: Predictor, records: Sequence[dict], canvas: tuple[int, int], moved: float = 0.0, masks: str = "full"
) -> list:
    """
    PyTorch's outputs for preprocessed RGB images; instances with score 0 are left out, and "sem_seg" are the classes.

    Args:
        canvas: (H, W) of the file's input, before it is padded to what the model needs.
        moved: what the model's threshold is higher by.
        masks: see `InstanceSegmenter.detect`.
    """
    graph, original = method_of(predictor.cfg).exportable(predictor.model), predictor.model
    model = copy.copy(graph.threshold_moved(moved))
    unit = 1 if graph.fills_canvas else max(1, graph.size_divisibility)

    def preprocess(records):
        images = getattr(original, graph.preprocess_name)(records)
        bottom, right = (-(-side // unit) * unit - now for side, now in zip(canvas, images.tensor.shape[-2:]))
        return ImageList(F.pad(images.tensor, (0, max(right, 0), 0, max(bottom, 0))), images.image_sizes)

    setattr(model, graph.preprocess_name, preprocess)
    if model.input_format == "BGR":
        records = [{**x, "image": x["image"].flip(0)} for x in records]
    results = []
    for found in detect(model, records, masks=masks):
        instances = found["instances"].to("cpu")
        maps = {"sem_seg": found["sem_seg"].argmax(0)} if "sem_seg" in found else {}
        results.append({**found, "instances": instances[instances.scores > 0], **maps})
    return results


def compare(predictor: Predictor, exported: ExportedPredictor, files: Sequence[str], repeats: int = 3) -> Parity:
    """
    Run both on images and compare the results.

    A file with a fixed batch gets batches filled up with mirrored copies, one with a free batch alternates between
    one and two images. If the size is free, the first image is also run rotated by 90 degrees.

    Args:
        files: image files.
        repeats: timed runs of each, alternating, on the last image.
    """
    free, limit = exported.metadata["size"] is None, exported.metadata["max_detections"]
    method = method_of(predictor.cfg)
    nms = method.exportable(predictor.model).nms_threshold
    parity = Parity(has_masks=exported.metadata["masks"] is not None, has_maps=method.panoptic(predictor.cfg))
    images = [read_image(file, "RGB", value_range=predictor.value_range) for file in files]
    turned = [np.rot90(images[0])] if free else []
    for index, image in enumerate([*images, *turned]):
        record = seen_by_network(exported, np.ascontiguousarray(image), index, "RGB")
        count = exported.metadata["batch"] or 1 + index % 2
        mirrored = {**record, "image": record["image"].flip(2)}
        records = [(record, mirrored)[i % 2] for i in range(count)]
        canvas = exported.canvas(record["image"])
        try:
            results = exported.outputs(records)
        except Exception as error:  # the runtimes raise all kinds
            size = " x ".join(map(str, record["image"].shape[-2:]))
            parity.error = f"it fails on {count} images of {size} pixels ({first_line(error)})"
            return parity
        scale = max(record["height"] / record["image"].shape[1], record["width"] / record["image"].shape[2])
        for i, (one, found) in enumerate(zip(reference(predictor, records, canvas), results)):

            def moved(by, i=i, records=records, canvas=canvas):
                return [reference(predictor, records, canvas, by)[i]["instances"]]

            expected, instances = one["instances"], found["instances"]
            parity.add(expected, instances, limit=limit, scale=max(scale, 1.0), moved=moved, nms_threshold=nms)
            if "sem_seg" in one and "sem_seg" in found:
                parity.add_map(one["sem_seg"], found["sem_seg"])
    parity.pytorch_ms, parity.exported_ms = time_both(predictor, exported, images[-1], repeats)
    return parity


def time_both(predictor: Predictor, exported: ExportedPredictor, image, repeats: int = 3) -> tuple[float, float]:
    """Median milliseconds per batch of PyTorch and of the file, in turns."""
    seconds: tuple[list, list] = ([], [])
    for one, times in ((predictor, seconds[0]), (exported, seconds[1])) * (repeats + 1):
        records = [seen_by_network(one, image, 0, "RGB")] * (exported.metadata["batch"] or 1)
        start = time.perf_counter()
        one.predict(records)
        times.append(time.perf_counter() - start)
    return tuple(1e3 * statistics.median(times[1:]) for times in seconds)
