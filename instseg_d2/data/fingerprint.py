"""The fingerprint of a data set: the numbers that a recipe for it depends on. M objects in all images."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from ..errors import DatasetError, ImageError
from .coco import class_names, require_registered
from .images import deep_pixels, read_image
from .mapper import boxes_of
from .presence import loading

__all__ = ["Fingerprint", "Quantiles", "fingerprint_of", "fixed_crop", "network_side", "take_fingerprint"]

SAMPLE = 16  # images whose pixels are read
COLOURFUL = 16  # of 255: in a grey image, the channels of almost all pixels differ by less
LOSSY = (".jpg", ".jpeg", ".webp", ".heic", ".heif", ".avif")  # files of cameras, not of microscopes


class Quantiles(NamedTuple):
    """The values below which 5, 25, 50, 90, 95 and 99 % lie."""

    q05: float
    q25: float
    q50: float
    q90: float
    q95: float
    q99: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Quantiles":
        """Of a non-empty array."""
        return cls(*(float(f"{value:.4g}") for value in np.quantile(values, (0.05, 0.25, 0.5, 0.9, 0.95, 0.99))))


@dataclass(frozen=True)
class Fingerprint:
    """
    What a recipe depends on. Crowds count only as crowds.

    Attributes:
        num_images, num_empty: all images, and those without objects.
        image_side: the images' shorter sides, pixels; image_aspect: longer side / shorter side.
        size: square roots of the area of the objects' boxes, pixels; relative_size: / the shorter side of the image.
        length: longer sides of the objects' boxes, pixels.
        relative_length: longer sides of the objects' boxes / the shorter side of the image.
        aspect: longer side / shorter side of the objects' boxes.
        spacing: side of the square that has one object on average, pixels, of the images that have any;
            least_spacing: of the image in which they are densest.
        mean_objects, q99_objects, max_objects: objects in an image, of the images that have any.
        classes: name -> objects; class_images: name -> images with at least one.
        touching: share of the objects whose box overlaps another one's.
        crowds: number of crowds.
        deep: the images have more than 8 bits.
        semantic: the images have semantic labels, as those of panoptic data.
        colour: share of the images in colour; photos: of those in colour and in a lossy format, such as JPEG.
    """

    num_images: int
    num_empty: int
    image_side: Quantiles
    image_aspect: Quantiles
    size: Quantiles
    relative_size: Quantiles
    length: Quantiles
    relative_length: Quantiles
    aspect: Quantiles
    spacing: Quantiles
    least_spacing: float
    mean_objects: float
    q99_objects: int
    max_objects: int
    classes: dict[str, int]
    class_images: dict[str, int]
    touching: float
    crowds: int
    deep: bool
    semantic: bool
    colour: float
    photos: float

    def as_dict(self) -> dict:
        """For a JSON file."""
        values = asdict(self).items()
        return {name: value._asdict() if isinstance(value, Quantiles) else value for name, value in values}

    @property
    def num_objects(self) -> int:
        return sum(self.classes.values())

    def lines(self) -> list[str]:
        """The fingerprint in words."""
        side, size, relative, aspect = self.image_side, self.size, self.relative_size, self.aspect
        kind = "more than 8 bits" if self.deep else f"{self.colour:.0%} in colour"
        return [
            f"{self.num_images} images ({self.num_empty} without objects), shorter side {side.q05:g} to {side.q95:g} "
            f"pixels, {kind}",
            f"{self.num_objects} objects of {len(self.classes)} classes, {self.crowds} crowds; {self.mean_objects:g} "
            f"in an image, at most {self.max_objects}; {self.touching:.0%} overlap another one's box",
            f"size of the objects {size.q05:g} to {size.q95:g} pixels, half of them below {size.q50:g}; "
            f"{relative.q05:.2g} to {relative.q95:.2g} of the image's shorter side; {aspect.q50:.2g} times as long as "
            f"wide (5 % over {aspect.q95:.2g})",
        ]


def _touching(boxes: np.ndarray, images: np.ndarray) -> float:
    """
    The share of boxes that overlap another one of their image.

    Args:
        boxes: (M, 4) x0 y0 x1 y1; images: (M,), ascending.
    """
    touches = np.zeros(len(boxes), bool)
    first = np.arange(len(boxes))
    for distance in itertools.count(1):  # each pass compares all pairs of objects so far apart in the list
        first = first[first < len(boxes) - distance]
        first = first[images[first] == images[first + distance]]
        if not len(first):
            return float(touches.mean())
        a, b = boxes[first], boxes[first + distance]
        both = (np.minimum(a[:, 2:], b[:, 2:]) > np.maximum(a[:, :2], b[:, :2])).all(1)
        touches[first[both]] = touches[first[both] + distance] = True
    raise AssertionError("the loop is endless")


def _look(files: Sequence[str]) -> tuple[bool, float, float]:
    """Of a sample: whether any image has more than 8 bits, the share in colour, and that of photos."""
    places = np.unique(np.linspace(0, len(files) - 1, min(SAMPLE, len(files))).round().astype(int))
    deep, colour, photo, count = False, 0, 0, 0
    for file in (files[place] for place in places):
        try:
            deep = deep or deep_pixels(file) is not None
            pixels = read_image(file)[::4, ::4].astype(int)
        except ImageError:  # the loaders count them
            continue
        colourful = np.quantile(np.ptp(pixels, axis=2), 0.99) > COLOURFUL
        count, colour = count + 1, colour + colourful
        photo += colourful and file.lower().endswith(LOSSY)
    return deep, float(colour / max(count, 1)), float(photo / max(count, 1))


def fingerprint_of(records: Sequence[dict], names: Sequence[str]) -> Fingerprint:
    """
    The fingerprint of records in Detectron2's standard format.

    Args:
        records: with at least one object; unreadable image files are ignored.
        names: the classes.
    """
    sides = np.array([(record["width"], record["height"]) for record in records], float)
    objects = [(i, x) for i, record in enumerate(records) for x in record["annotations"]]
    kept = [(i, x) for i, x in objects if not x.get("iscrowd", 0)]
    images = np.array([i for i, _ in kept])
    boxes = boxes_of([x for _, x in kept])
    extent = np.maximum(boxes[:, 2:] - boxes[:, :2], 1)
    classes = np.array([x["category_id"] for _, x in kept])
    size, side = np.sqrt(extent.prod(1)), sides.min(1)
    counts = np.bincount(images, minlength=len(records))
    pairs = np.unique(np.stack([images, classes]), axis=1)  # of an image and a class in it
    spacing = np.sqrt(sides.prod(1)[counts > 0] / counts[counts > 0])
    deep, colour, photos = _look([str(record["file_name"]) for record in records])
    return Fingerprint(
        num_images=len(records),
        num_empty=int((counts == 0).sum()),
        image_side=Quantiles.of(side),
        image_aspect=Quantiles.of(sides.max(1) / side),
        size=Quantiles.of(size),
        relative_size=Quantiles.of(size / side[images]),
        length=Quantiles.of(extent.max(1)),
        relative_length=Quantiles.of(extent.max(1) / side[images]),
        aspect=Quantiles.of(extent.max(1) / extent.min(1)),
        spacing=Quantiles.of(spacing),
        least_spacing=round(float(spacing.min()), 1),
        mean_objects=round(float(counts[counts > 0].mean()), 2),
        q99_objects=int(np.ceil(np.quantile(counts[counts > 0], 0.99))),
        max_objects=int(counts.max()),
        classes=dict(zip(names, np.bincount(classes, minlength=len(names)).tolist())),
        class_images=dict(zip(names, np.bincount(pairs[1], minlength=len(names)).tolist())),
        touching=round(_touching(boxes, images), 3),
        crowds=len(objects) - len(kept),
        deep=deep,
        semantic=any("sem_seg_file_name" in record for record in records),
        colour=round(colour, 2),
        photos=round(photos, 2),
    )


def take_fingerprint(data_sets: Sequence[str]) -> Fingerprint:
    """
    The fingerprint of registered data sets together.

    Raises:
        DatasetError: one is not registered, cannot be loaded, or has no object.
    """
    for name in data_sets:
        require_registered(name)
    with loading(data_sets):
        records = [record for name in data_sets for record in DatasetCatalog.get(name)]
    if all(x.get("iscrowd", 0) for record in records for x in record["annotations"]):
        raise DatasetError(f"{', '.join(data_sets)}: no image has an object to train on.")
    return fingerprint_of(records, class_names(data_sets[0]))


def fixed_crop(cfg: CfgNode) -> int:
    """The side in pixels of training's crops of a fixed size; 0: there are none."""
    crop = cfg.INPUT.CROP
    return crop.SIZE[0] if crop.ENABLED and crop.TYPE == "absolute" else 0


def network_side(cfg: CfgNode, data: Fingerprint) -> float:
    """
    The shorter side in pixels of a typical image of the data at the scale at which the network is trained: the middle
    one of INPUT.MIN_SIZE_TRAIN, or, with crops of a fixed size, that of an image of which these are parts.
    """
    sizes, crop = cfg.INPUT.MIN_SIZE_TRAIN, fixed_crop(cfg)
    side = sizes[len(sizes) // 2] or crop or data.image_side.q50  # 0: not resized
    return side * data.image_side.q50 / crop if crop else side
