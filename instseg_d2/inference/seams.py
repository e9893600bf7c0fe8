"""
Joins the detections of overlapping tiles. T tiles, D detections.

Where two tiles overlap, both see the same strip of the image. Two detections are one object if they have the same class
and their masks agree on the strip. Masks stay run lengths; a model without masks is joined by its boxes.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.structures import Boxes, Instances
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ..modeling.postprocessing import RunLengthMasks

__all__ = ["merge_tiles"]

# IoU on the strip. Above one half, a mask agrees with at most one of several that do not overlap, so that neighbours
# are never joined through a third mask.
MIN_AGREEMENT = 0.5
# Part of a fragment that the other tile's mask must cover.
MIN_COVER = 0.5
# A detection this close to the inner border of its tile, as a part of the tile's side, may be cut by it: masks are
# coarser than pixels, and worse at the border.
MARGIN = 0.04


def merge_tiles(found: Sequence[Instances], tiles: Sequence[tuple], size: tuple) -> Instances:
    """
    One object per object, sorted by score.

    If one tile sees all of an object, its detection is kept as it is (the best one of several tiles). Otherwise the
    pieces are united, and the score is their mean weighted by area: the tile that sees most counts most, and an object
    over many tiles does not gain from the best of many scores. A piece at the border of its tile which a tile that sees
    it whole gives to a larger object is dropped.

    Args:
        found: for each tile, detections in its pixels with pred_boxes, scores, pred_classes and perhaps pred_masks
            (`RunLengthMasks`); other fields are left out.
        tiles: x1, y1, x2, y2 of each, in pixels of the image.
        size: (H, W) of the image.
    """
    pieces = _Pieces(found, tiles, size)
    links, fragments = [], []
    for a, b in _overlapping(tiles):
        more_links, more_fragments = pieces.compare(a, b)
        links += more_links
        fragments += more_fragments
    count = len(pieces.scores)
    first, second = np.array(links, dtype=int).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(count, count))
    groups = connected_components(graph, directed=False)[1]
    alone = np.bincount(groups)[groups] == 1
    dropped: set[int] = set()
    for fragment, cover in sorted(fragments, key=lambda pair: pieces.areas[pair[0]]):  # two may cover each other
        if alone[fragment] and cover not in dropped:
            dropped.add(fragment)
    order = np.argsort(groups, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(groups[order])) + 1) if count else []
    return pieces.joined([group for group in members if group[0] not in dropped])


def _overlapping(tiles: Sequence[tuple]) -> Iterator[tuple[int, int]]:
    """The pairs of tiles that overlap; tiles are listed row by row."""
    for a, (x1, _, x2, y2) in enumerate(tiles):
        for b in range(a + 1, len(tiles)):
            if tiles[b][1] >= y2:
                break
            if tiles[b][0] < x2 and x1 < tiles[b][2]:
                yield a, b


def _inside(boxes: np.ndarray, outer: np.ndarray) -> np.ndarray:
    """Whether boxes (..., 4) lie inside another."""
    return (boxes[..., :2] >= outer[:2]).all(-1) & (boxes[..., 2:] <= outer[2:]).all(-1)


class _Pieces:
    """
    The detections of all tiles.

    Attributes:
        tile: (D,) index of a detection's tile; first: (T + 1,) index of a tile's first detection.
        boxes, extents: (D, 4) predicted boxes, and what the masks occupy, in pixels of the image.
        regions: masks, or else filled boxes, of each tile.
        inner: (T, 4) part of the image in which a detection of a tile is not cut.
    """

    def __init__(self, found: Sequence[Instances], tiles: Sequence[tuple], size: tuple):
        self.size, self.tiles = size, np.array(tiles)
        counts = [len(x) for x in found]
        self.tile = np.repeat(np.arange(len(tiles)), counts)
        self.first = np.append(0, np.cumsum(counts))
        offsets = np.tile(self.tiles[self.tile, :2], 2)
        self.boxes = np.concatenate([x.pred_boxes.tensor.numpy() for x in found]) + offsets
        self.scores = np.concatenate([x.scores.numpy() for x in found])
        self.classes = np.concatenate([x.pred_classes.numpy() for x in found])
        self.has_masks = found[0].has("pred_masks")
        self.regions = [x.pred_masks if self.has_masks else _filled(x) for x in found]
        codes = [code for region in self.regions for code in region.codes]
        # One at a time: of over 255 masks, pycocotools raises an OverflowError with NumPy 2.
        self.areas = np.array([mask_util.area(code) for code in codes], dtype=float)
        places = mask_util.toBbox(codes) if codes else np.zeros((0, 4))
        places[:, 2:] += places[:, :2]
        self.extents = places + offsets
        margin = MARGIN * (self.tiles[:, 2:] - self.tiles[:, :2])
        low, high = self.tiles[:, :2], self.tiles[:, 2:]
        low, high = np.where(low > 0, low + margin, low), np.where(high < size[::-1], high - margin, high)
        self.inner = np.concatenate([low, high], 1)
        self.cut = np.array([not _inside(e, self.inner[t]) for e, t in zip(self.extents, self.tile)], dtype=bool)

    def seen(self, tile: int, strip: np.ndarray) -> tuple[np.ndarray, list]:
        """The detections of a tile on a strip, and their codes there."""
        members = np.arange(self.first[tile], self.first[tile + 1])
        extents = self.extents[members]
        members = members[((extents[:, :2] < strip[2:]) & (extents[:, 2:] > strip[:2])).all(1)]
        x, y = (strip[:2] - self.tiles[tile, :2]).tolist()
        size = (int(strip[3] - strip[1]), int(strip[2] - strip[0]))
        return members, self.regions[tile][members - self.first[tile]].window(x, y, size).codes

    def compare(self, a: int, b: int) -> tuple[list, list]:
        """Pairs of detections of two tiles that are one object, and pairs of a fragment and what covers it."""
        strip = np.append(
            np.maximum(self.tiles[a, :2], self.tiles[b, :2]), np.minimum(self.tiles[a, 2:], self.tiles[b, 2:])
        )
        (of_a, codes_a), (of_b, codes_b) = self.seen(a, strip), self.seen(b, strip)
        if not len(of_a) or not len(of_b):
            return [], []
        same = self.classes[of_a, None] == self.classes[of_b]
        agree = same & (mask_util.iou(codes_a, codes_b, [0] * len(of_b)) > MIN_AGREEMENT)
        fragments = []
        for small, large, codes, others, tile in ((of_a, of_b, codes_a, codes_b, b), (of_b, of_a, codes_b, codes_a, a)):
            covers = mask_util.iou(codes, others, [1] * len(large))  # of the small one's area
            covers[self.classes[small, None] != self.classes[large]] = 0
            best = covers.argmax(1)
            drop = self.cut[small] & _inside(self.extents[small], self.inner[tile]) & (covers.max(1) > MIN_COVER)
            fragments += zip(small[drop].tolist(), large[best[drop]].tolist())
        pairs = np.argwhere(agree)
        scores = self.scores[of_a][pairs[:, 0]] * self.scores[of_b][pairs[:, 1]]
        links, taken = [], set()
        for i in np.argsort(-scores, kind="stable"):  # one with one, the best scores first
            pair = int(of_a[pairs[i, 0]]), int(of_b[pairs[i, 1]])
            if taken.isdisjoint(pair):
                taken.update(pair)
                links.append(pair)
        return links, fragments

    def joined(self, groups: Sequence[np.ndarray]) -> Instances:
        """The objects of groups of detections."""
        boxes, scores, codes = [], [], []
        chosen = [self._chosen(group) for group in groups]
        placed = self._placed(np.concatenate(chosen)) if chosen and self.has_masks else {}
        for group in chosen:
            boxes.append(np.append(self.boxes[group, :2].min(0), self.boxes[group, 2:].max(0)))
            weights = self.areas[group] if self.areas[group].sum() > 0 else None
            scores.append(np.average(self.scores[group], weights=weights))
            if self.has_masks:
                parts = [placed[index] for index in group.tolist()]
                codes.append(mask_util.merge(parts) if len(parts) > 1 else parts[0])
        order = np.argsort(-np.array(scores), kind="stable")
        result = Instances(self.size)
        result.pred_boxes = Boxes(torch.tensor(np.array(boxes).reshape(-1, 4)[order], dtype=torch.float32))
        result.scores = torch.tensor(np.array(scores)[order], dtype=torch.float32)
        classes = np.array([self.classes[group[0]] for group in chosen], dtype=np.int64)
        result.pred_classes = torch.from_numpy(classes[order])
        if self.has_masks:
            result.pred_masks = RunLengthMasks([codes[index] for index in order], self.size)
        return result

    def _chosen(self, group: np.ndarray) -> np.ndarray:
        """The best one of those whose tile sees all that the group occupies; without any, the whole group."""
        extent = np.append(self.extents[group, :2].min(0), self.extents[group, 2:].max(0))
        whole = [index for index in group if _inside(extent, self.inner[self.tile[index]])]
        return np.array([max(whole, key=lambda index: self.scores[index])]) if whole else group

    def _placed(self, indices: np.ndarray) -> dict[int, dict]:
        """Index -> code in the whole image, of the detections with these indices."""
        codes = {}
        for tile in np.unique(self.tile[indices]):
            x, y = self.tiles[tile, :2].tolist()
            members = indices[self.tile[indices] == tile]
            placed = self.regions[tile][members - self.first[tile]].window(-x, -y, self.size).codes
            codes.update(zip(members.tolist(), placed))
        return codes


def _filled(instances: Instances) -> RunLengthMasks:
    """Masks that fill the boxes, rounded to whole pixels outwards."""
    boxes = instances.pred_boxes.tensor.numpy()
    low, high = np.floor(boxes[:, :2]).astype(int), np.ceil(boxes[:, 2:]).astype(int)
    patches = ((y1, x1, np.ones((y2 - y1, x2 - x1), bool)) for (x1, y1), (x2, y2) in zip(low, high))
    return RunLengthMasks.of_patches(patches, instances.image_size)
