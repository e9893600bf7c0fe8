"""Prediction in overlapping tiles, for images larger than the network sees."""

import math
from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances

from ..errors import ConfigError
from ..modeling.postprocessing import check_mask_format
from .image_predictor import ImageLike, ImagePredictor, to_rgb
from .optimize import optimize_for_inference
from .predictor import ModelPredictor
from .seams import merge_tiles

__all__ = [
    "TiledModel",
    "TiledPredictor",
    "check_tiles",
    "in_tiles",
    "model_for_test",
    "seen_by_network",
    "tile_boxes",
]

MIN_TILE, MAX_OVERLAP = 32, 0.75
OVERLAP = 0.2  # of a tile, if none is given
TOGETHER = 2**21  # pixels of the tiles that run through the network together in an evaluation on a GPU
FAINT = 0.5  # pieces of an object may score lower than it does: down to this part of the threshold they are joined


def check_tiles(tile: Optional[int], overlap: Optional[float]) -> None:
    """
    Check the side of a tile and the overlap, if given.

    Raises:
        ConfigError: a tile is too small, or the overlap is not a sensible part of a tile.
    """
    if tile is not None and tile < MIN_TILE:
        raise ConfigError(f"--tile is {tile}; a tile must have at least {MIN_TILE} pixels a side")
    if overlap is not None and not 0 <= overlap <= MAX_OVERLAP:
        raise ConfigError(f"--overlap is {overlap:g}; it must be a part of the tile from 0 to {MAX_OVERLAP}")


def _starts(length: int, tile: int, overlap: float) -> list[int]:
    """First pixels of as few tiles as cover a side, evenly spread; neighbours share at least this part of a tile."""
    if length <= tile:
        return [0]
    step = tile - math.ceil(tile * overlap)
    count = math.ceil((length - tile) / step) + 1
    return np.linspace(0, length - tile, count).round().astype(int).tolist()


def tile_boxes(size: tuple, tile: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """
    The tiles of an image, row by row, all of one size: x1, y1, x2, y2 in pixels.

    Args:
        size: (H, W) of the image.
        tile: side of a tile; a shorter side of the image is not cut.
        overlap: the least part of a tile that it shares with the next one.
    """
    height, width = (min(length, tile) for length in size)
    columns = _starts(size[1], tile, overlap)
    return [(x, y, x + width, y + height) for y in _starts(size[0], tile, overlap) for x in columns]


class TiledPredictor(ImagePredictor):
    """
    Any predictor, for large images: they are cut into overlapping tiles, the network sees each of them as an image,
    resized as at test time, and objects cut by a seam are joined. An image that fits into a tile is not cut.

    The config's limits on the number of detections apply to every tile. `explain` shows the whole image, shrunk.

    Args:
        predictor: the predictor to give the tiles to.
        tile: side of a tile in pixels of the image.
        overlap: the least part of a tile that it shares with the next one. Objects larger than this are joined from
            pieces; without overlap, objects cut by a seam stay in pieces.
        batch: number of tiles that run through the network together, if the predictor is faster so.
        limit: at most so many objects of an image, the best; None: no limit. Of the
            detections, so many times as many are joined as tiles may see a pixel.

    Raises:
        ConfigError: an argument is invalid, or the model predicts what cannot be joined.
    """

    def __init__(
        self,
        predictor: ImagePredictor,
        tile: int,
        overlap: float = OVERLAP,
        batch: int = 1,
        limit: Optional[int] = None,
    ):
        check_tiles(tile, overlap)
        if predictor.further_output:
            raise ConfigError(f"--tile cannot join {predictor.further_output}, which this model predicts: omit --tile")
        self.predictor, self.side, self.overlap, self.limit = predictor, tile, overlap, limit
        self.settings = {"tile": tile, "overlap": overlap}
        self.tiles_at_a_time = batch if predictor.batches else 1
        self.class_names, self.stuff_names = predictor.class_names, predictor.stuff_names
        self.category_ids, self.value_range = predictor.category_ids, predictor.value_range
        self.input_format, self.resize = predictor.input_format, predictor.resize

    @property
    def on_cpu(self) -> bool:
        return self.predictor.on_cpu

    @property
    def batches(self) -> bool:
        return False  # of images; the tiles of each run together

    def preprocess(self, image: ImageLike, channel_order: str = "BGR") -> dict:
        """
        The record of an image: that of the predictor, or, if the image must be cut, "tiles" (x1, y1, x2, y2) and the
        "image" (H, W, 3) RGB. The tiles are resized when their turn comes: together they may be many times as large.
        """
        rgb = to_rgb(image, channel_order, self.value_range)
        height, width = rgb.shape[:2]
        tiles = tile_boxes((height, width), self.side, self.overlap)
        if len(tiles) == 1:
            return self.predictor.preprocess(rgb, "RGB")
        return {"image": rgb, "tiles": tiles, "height": height, "width": width}

    def outputs(self, inputs: Sequence[dict], score_threshold: float = 0.0, masks: str = "full") -> list[dict]:
        check_mask_format(masks)
        uncut = [x for x in inputs if "tiles" not in x]
        found = iter(self.predictor.outputs(uncut, score_threshold, masks) if uncut else [])
        return [{"instances": self._join(x, score_threshold, masks)} if "tiles" in x else next(found) for x in inputs]

    def _join(self, record: dict, score_threshold: float, masks: str) -> Instances:
        tiles, found = record["tiles"], []
        for start in range(0, len(tiles), self.tiles_at_a_time):
            crops = [record["image"][y1:y2, x1:x2] for x1, y1, x2, y2 in tiles[start : start + self.tiles_at_a_time]]
            inputs = [self.predictor.preprocess(crop, "RGB") for crop in crops]
            # Also without masks, to join the same objects.
            found += self.predictor.predict(inputs, FAINT * score_threshold, "run_lengths")
        if self.limit is not None:
            found = _best(found, _times_seen(tiles) * self.limit)
        joined = merge_tiles(found, tiles, (record["height"], record["width"]))
        joined = joined[joined.scores >= score_threshold][: self.limit]
        if joined.has("pred_masks"):
            if masks == "full":
                joined.pred_masks = joined.pred_masks.decode()
            elif masks == "none":
                joined.remove("pred_masks")
        return joined

    def explain(self, image: ImageLike, max_instances: int = 4, channel_order: str = "BGR") -> list:
        return self.predictor.explain(image, max_instances, channel_order)


def _times_seen(tiles: Sequence[tuple]) -> int:
    """How many tiles of a grid see the same pixel, at most."""
    columns, rows = {(x1, x2) for x1, _, x2, _ in tiles}, {(y1, y2) for _, y1, _, y2 in tiles}
    along = [max(sum(low <= start < high for low, high in parts) for start, _ in parts) for parts in (columns, rows)]
    return along[0] * along[1]


def _best(found: Sequence[Instances], count: int) -> list[Instances]:
    """The best detections of all tiles."""
    scores = torch.cat([x.scores for x in found])
    if len(scores) <= count:
        return list(found)
    least = scores.topk(count).values[-1]
    return [x[x.scores >= least] for x in found]


def seen_by_network(predictor: ImagePredictor, image: ImageLike, index: int, channel_order: str = "BGR") -> dict:
    """The preprocessed image, or, if the model is tested in tiles, one of its tiles; ``index`` decides which."""
    if not predictor.tile:
        return predictor.preprocess(image, channel_order)
    rgb = to_rgb(image, channel_order, predictor.value_range)
    tiles = tile_boxes(rgb.shape[:2], *predictor.tile)
    x1, y1, x2, y2 = tiles[index % len(tiles)]
    return predictor.preprocess(np.ascontiguousarray(rgb[y1:y2, x1:x2]), "RGB")


def in_tiles(
    predictor: ImagePredictor, tile: Optional[int] = None, overlap: Optional[float] = None, batch: int = 1
) -> ImagePredictor:
    """
    The predictor for whole images: cut into tiles, or not.

    Args:
        tile: side of a tile in pixels of the image; 0: images are not cut; None: as the model is tested (TEST.TILE).
        overlap: see `TiledPredictor`; None: as the model is tested, or 0.2 if that is on whole images.
        batch: see `TiledPredictor`.

    Raises:
        ConfigError: see `TiledPredictor`; or there is an overlap without tiles.
    """
    side, usual = predictor.tile or (0, OVERLAP)
    side = side if tile is None else tile
    if side:
        return TiledPredictor(predictor, side, usual if overlap is None else overlap, batch)
    if overlap is not None:
        raise ConfigError("--overlap is that of tiles: give their size as well, such as --tile 640")
    return predictor


class TiledModel(torch.nn.Module):
    """
    A model that is evaluated as TEST.TILE says: it takes images that are not resized, and gives the results of
    `TiledPredictor`, at most TEST.DETECTIONS_PER_IMAGE, on the CPU.

    Args:
        cfg: the model's config.
        model: any model for inference with Detectron2's inputs and outputs.
    """

    def __init__(self, cfg: CfgNode, model: torch.nn.Module):
        super().__init__()
        self.model = model
        together = max(1, TOGETHER // (cfg.INPUT.MIN_SIZE_TEST or cfg.TEST.TILE.SIZE) ** 2)
        predictor, limit = ModelPredictor(cfg, model), cfg.TEST.DETECTIONS_PER_IMAGE
        self._predictor = TiledPredictor(predictor, *predictor.tile, together, limit)
        self._order = cfg.INPUT.FORMAT

    def forward(self, batched_inputs: Sequence[dict]) -> list[dict]:
        return self.detect(batched_inputs)

    def detect(self, batched_inputs: Sequence[dict], score_threshold: float = 0.0, masks: str = "full") -> list[dict]:
        """See `InstanceSegmenter.detect`."""
        images = [x["image"].permute(1, 2, 0).numpy() for x in batched_inputs]
        records = [self._predictor.preprocess(image, self._order) for image in images]
        return self._predictor.outputs(records, score_threshold, masks)


def model_for_test(cfg: CfgNode, model: torch.nn.Module) -> torch.nn.Module:
    """The optimised copy of a model, which takes the images of `build_test_loader`; with TEST.TILE it cuts them."""
    fast = optimize_for_inference(model)
    return TiledModel(cfg, fast) if cfg.TEST.TILE.SIZE else fast
