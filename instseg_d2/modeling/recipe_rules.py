"""Rules for recipes that several methods share: config key -> (value, reason), see `methods.AutoRecipe`."""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

from detectron2.config import CfgNode

from ..config.schedule import rest_of_schedule
from ..data.fingerprint import Fingerprint, fixed_crop, network_side

__all__ = [
    "ENLARGED",
    "MANY",
    "MARGIN",
    "SMALL",
    "TYPICAL",
    "Levels",
    "cheaper_steps",
    "crops_of_crowds",
    "decided",
    "fine_map_reason",
    "no_coarse_map_reason",
    "objects_seen",
    "pyramid_levels",
    "tiles",
    "tiles_of_crops",
]

ENLARGED = 1.5  # at most; more adds pixels, but nothing to see
SMALL, TYPICAL = 12, 24  # pixels at the network's input: of the objects, three quarters and half should be larger
CHEAPER = 0.75  # of the side
LONG = 96  # pixels at the network's input: objects that need a map of stride 32 are longer
MANY = 100  # queries that a small recipe can train, objects that a whole image may have for them
CROWD = 16  # objects in a crop of the fullest images, on average
MARGIN = 1.2  # more detections and slots than objects in the fullest image
UNEVEN = 2  # times as many objects as on average are in a crop of an image where they are dense
CROP_SIDES = 192, 384  # at least and at most, of a crop at the network's input


def _level(stride: int) -> str:
    """The pyramid's name for the map of a stride, a power of two."""
    return f"p{stride.bit_length() - 1}"


class Levels(NamedTuple):
    """
    The levels of an FCOS detector.

    Attributes:
        strides: of each level, pixels, finest first.
        splits: upper ends of their ranges of max(l, t, r, b), pixels, without the last, which has none.
        dropped: number of levels that no object needs.
        reason: for all of this.
    """

    strides: list[int]
    splits: list[int]
    dropped: int
    reason: str

    @property
    def about_dropped(self) -> str:
        """In words."""
        return f"without the highest {self.dropped}, which no object reaches" if self.dropped else "all have objects"

    @property
    def names(self) -> list[str]:
        return [_level(stride) for stride in self.strides]


def decided(cfg: CfgNode, decisions: dict) -> CfgNode:
    """A copy of the config with these decisions."""
    cfg = cfg.clone()
    cfg.merge_from_list([word for key, (value, _) in decisions.items() for word in (key, value)])
    return cfg


def in_network(cfg: CfgNode, data: Fingerprint, pixels: float, relative: float) -> float:
    """A length at the network's input in training: given in pixels of the image, and by the image's shorter side."""
    side = network_side(cfg, data)
    return pixels * side / data.image_side.q50 if fixed_crop(cfg) else relative * side


def pyramid_levels(cfg: CfgNode, data: Fingerprint, strides: list[int], needed: Collection[str] = ()) -> Levels:
    """
    Size ranges that begin where half of the objects end, within limits, and double from level to level; without the
    highest levels that no object reaches.

    At its centre, an object's max(l, t, r, b) is half of its longer side.

    Args:
        strides: of the base recipe; MODEL.FCOS.TOP_LEVELS of them may be dropped.
        needed: names of levels that something else reads, which are kept.
    """
    side = network_side(cfg, data)
    lengths = zip((data.length.q50, data.length.q99), (data.relative_length.q50, data.relative_length.q99))
    half, almost_all = (in_network(cfg, data, *length) / 2 for length in lengths)
    finest = strides[0]
    # A range that ends below 4 strides leaves no room for the locations around the centre; 8 strides are the paper's.
    first = min(max(8 * math.ceil(half / 8), 4 * finest), 8 * finest)
    splits = [first * 2**level for level in range(len(strides) - 1)]
    dropped = 0
    while dropped < cfg.MODEL.FCOS.TOP_LEVELS and len(splits) > 1 and splits[-1] > 1.2 * almost_all:
        if _level(strides[len(splits)]) in needed:
            break
        dropped += 1
        splits.pop()
    reason = (
        f"half of the objects' longer sides are below {2 * half:.0f} pixels and 99 % below {2 * almost_all:.0f} in "
        f"images of {side:.0f}; from its centre to its side, an object has half of that"
    )
    return Levels(list(strides[: len(splits) + 1]), splits, dropped, reason)


def fine_map_reason(cfg: CfgNode, data: Fingerprint) -> str:
    """Why a map of stride 4 is needed; empty if it is not."""
    size = in_network(cfg, data, data.size.q50, data.relative_size.q50)
    return f"half of the objects are below {size:.0f} pixels: features of stride 4" if size < TYPICAL else ""


def no_coarse_map_reason(cfg: CfgNode, data: Fingerprint) -> str:
    """Why crops need no map of stride 32; empty if they do, or for whole images."""
    if not fixed_crop(cfg):
        return ""
    length = in_network(cfg, data, data.length.q90, data.relative_length.q90)
    if length >= LONG:
        return ""
    return f"nine of ten objects are at most {length:.0f} pixels long: no features of stride 32"


def tiles(data: Fingerprint, size: int, reason: str) -> dict:
    """Test in tiles of so many pixels of the image a side, which share more than most objects take."""
    length = data.length.q90
    overlap = min(max(math.ceil(20 * length / size) / 20, 0.2), 0.5)
    return {
        "TEST.TILE.SIZE": (size, reason),
        "TEST.TILE.OVERLAP": (overlap, f"nine of ten objects are at most {length:.0f} pixels long"),
    }


def tiles_of_crops(cfg: CfgNode, data: Fingerprint, given: Collection, reason: str) -> dict:
    """
    Tests in tiles as large as the crops, at the largest size of training, for what has a fixed number of queries. Empty
    without crops of a fixed size, or if the size of tests or tiles is given.
    """
    crop, sizes = fixed_crop(cfg), cfg.INPUT.MIN_SIZE_TRAIN
    if not crop or not {"INPUT.MIN_SIZE_TEST", "TEST.TILE.SIZE"}.isdisjoint(given):
        return {}
    return {
        "INPUT.MIN_SIZE_TEST": (sizes[-1], "the largest size of training"),
        "INPUT.MAX_SIZE_TEST": (cfg.INPUT.MAX_SIZE_TRAIN, "the same"),
        **tiles(data, crop, f"as large as the crops: {reason}"),
    }


def crops_of_crowds(cfg: CfgNode, data: Fingerprint, given: Collection, reason: str) -> dict:
    """
    Crops with so few objects that a few queries can find them. Empty if they would be almost whole images, larger than
    the config's crops, or too small for the objects, or if sizes or crops are given.
    """
    keys = {"INPUT.CROP.ENABLED", "INPUT.CROP.SIZE", "INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST", "TEST.TILE.SIZE"}
    scale, (low, high) = min(max(SMALL / data.size.q25, TYPICAL / data.size.q50), ENLARGED), CROP_SIDES
    least = max(2.5 * data.length.q90, 64)  # that shows most objects whole
    wanted = max(CROWD**0.5 * data.spacing.q05, least)
    most = cfg.INPUT.CROP.SIZE[0] if cfg.INPUT.CROP.ENABLED else 0.75 * data.image_side.q50
    if wanted > most or high / scale < least or not keys.isdisjoint(given):
        return {}
    crop = 8 * round(min(wanted, high / scale) / 8)
    side = 32 * round(max(crop * scale, min(low, crop * ENLARGED)) / 32)
    sizes = (side - 32, side, side + 32)
    return {
        "INPUT.CROP.ENABLED": (True, reason),
        "INPUT.CROP.SCHEME": ("before_resize", "windows of the original image"),
        "INPUT.CROP.TYPE": ("absolute", "in pixels of the original image"),
        "INPUT.CROP.SIZE": ((crop, crop), f"about {CROWD} objects in a dense image"),
        "INPUT.MIN_SIZE_TRAIN": (sizes, f"the crop's shorter side around {side}"),
        "INPUT.MAX_SIZE_TRAIN": (2 * sizes[-1], "crops of images that are smaller on one side"),
    }


def objects_seen(cfg: CfgNode, data: Fingerprint) -> tuple[float, int, int]:
    """
    The objects in whole images: on average, in 1 % of the images, and at most. With tiles, estimates for these: where
    objects are dense in a typical image and in one of the densest 5 %, and on average in the densest, if that is more.
    """
    whole = data.mean_objects, data.q99_objects, data.max_objects
    side = cfg.TEST.TILE.SIZE
    if not side:
        return whole
    mean, many = (UNEVEN * (side / spacing) ** 2 for spacing in (data.spacing.q50, data.spacing.q05))
    found = max(mean, 1), many, max(many, (side / data.least_spacing) ** 2)
    mean, many, most = map(min, found, whole)
    return mean, math.ceil(many), math.ceil(most)


def cheaper_steps(cfg: CfgNode, unit: int, given: Mapping, reason: str) -> dict:
    """Smaller images and batches of two, or of ``unit`` if that is more, for what needs many steps; not if given."""
    batch, sizes = min(cfg.SOLVER.IMS_PER_BATCH, unit * math.ceil(2 / unit)), cfg.INPUT.MIN_SIZE_TRAIN
    decisions = {}
    if batch != cfg.SOLVER.IMS_PER_BATCH:
        iterations = round(cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH / batch)
        iterations = given.get("SOLVER.MAX_ITER", iterations)
        kept = {"SOLVER.WARMUP_ITERS", *given}  # as many steps of warm-up as in larger batches
        rest = {key: value for key, value in rest_of_schedule(cfg, iterations).items() if key not in kept}
        decisions = {
            **{key: (value, "at its share of the iterations") for key, value in rest.items()},
            "SOLVER.IMS_PER_BATCH": (batch, reason),
            "SOLVER.BASE_LR": (
                float(f"{cfg.SOLVER.BASE_LR * math.sqrt(batch / cfg.SOLVER.IMS_PER_BATCH):.3g}"),
                "times the root of the batch's change",
            ),
            "SOLVER.MAX_ITER": (
                iterations,
                "as many images as in larger batches; --minutes fits it to a time",
            ),
        }
    if sizes[0] * CHEAPER < 160 or cfg.INPUT.CROP.ENABLED or "INPUT.MIN_SIZE_TRAIN" in given:
        return decisions
    smaller = tuple(sorted({32 * round(CHEAPER * size / 32) for size in sizes}))
    decisions |= {
        "INPUT.MIN_SIZE_TRAIN": (smaller, f"{reason}: {CHEAPER:g} of the usual size"),
        "INPUT.MAX_SIZE_TRAIN": (32 * math.ceil(CHEAPER * cfg.INPUT.MAX_SIZE_TRAIN / 32), "the same"),
    }
    if "INPUT.MIN_SIZE_TEST" in given:
        return decisions
    return {
        **decisions,
        "INPUT.MIN_SIZE_TEST": (smaller[-1], "the largest size of the training"),
        "INPUT.MAX_SIZE_TEST": (32 * math.ceil(CHEAPER * cfg.INPUT.MAX_SIZE_TEST / 32), "the same"),
    }
