"""
The shapes data set with a labelled ground, drawn on demand: ``shapes_panoptic_train`` and ``shapes_panoptic_val``.

Things are the six shapes. Stuff is the ground below them: sky, grass, water and bricks in one to three regions per
image, sometimes with an unlabelled region. Files and metadata are those of COCO's panoptic sets as Detectron2 registers
them (``coco_2017_train_panoptic_separated``): instances with masks, a separate semantic map that is 0 on all things,
and COCO-panoptic PNGs for the evaluation. H x W pixels.
"""

import functools
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...files import cache_folder, write_json
from ..coco import CocoSource
from .drawing import CLASSES, draw_scene, noise
from .instances import CATEGORY_IDS, SPLITS, make_split, write_images

__all__ = ["STUFF_CLASSES", "make_shapes_panoptic", "register_shapes_panoptic"]

VERSION = 1
STUFF_CLASSES = ("sky", "grass", "water", "bricks")  # semantic labels 1 to 4; 0: things
STUFF_CATEGORY_IDS = (21, 34, 55, 89)
IGNORE_LABEL = 255
_UNLABELLED = len(STUFF_CLASSES)  # a further kind of ground
_KIND_SHARES = (0.23, 0.23, 0.23, 0.23, 0.08)
_COLOURS = ((225, 175, 120), (60, 145, 75), (150, 105, 55), (60, 75, 165), (125, 125, 125))  # BGR of each kind
_SEGMENT_ID = 1000  # the id of a segment: category * 1000 + number of the object


def _texture(rng, kind: int, height: int, width: int) -> np.ndarray:
    """The texture of a kind of ground: float32 (H, W, 3), BGR, 0 to about 255."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    colour = np.float32(_COLOURS[kind]) * rng.uniform(0.75, 1.2) + rng.normal(0, 14, 3).astype(np.float32)
    if kind == _UNLABELLED:
        return colour * (0.6 + 0.8 * noise(rng, height, width, 12))[..., None]
    name = STUFF_CLASSES[kind]
    if name == "sky":
        clouds = (2 * noise(rng, height, width, 55) - 0.9).clip(0, 1)[..., None]
        return (colour * (0.85 + 0.3 * y / height)[..., None]) * (1 - clouds) + 235 * clouds
    if name == "grass":
        blades = cv2.resize(noise(rng, height // 4 + 1, width, 2.2), (width, height))
        return colour * (0.55 + 0.9 * blades)[..., None]
    if name == "water":
        period, swell = rng.uniform(9, 16), rng.uniform(20, 45)
        waves = np.sin(2 * np.pi * (y + 3 * np.sin(2 * np.pi * x / swell)) / period)
        return colour * (1 + 0.25 * waves)[..., None]
    tall = rng.uniform(10, 16)
    wide, row = 2.2 * tall, np.floor(y / tall)
    mortar = (y % tall < 2) | ((x + row % 2 * wide / 2) % wide < 2)
    return np.where(mortar[..., None], 190, colour * (0.8 + 0.4 * noise(rng, height, width, tall))[..., None])


def paint_stuff(rng, height: int, width: int):
    """
    A ground of one to three regions with wavy borders.

    Returns:
        (H, W, 3) float32 BGR, and (H, W) uint8 labels: 1 to 4, or IGNORE_LABEL.
    """
    count = int(rng.integers(1, 4))
    kinds = rng.choice(len(_COLOURS), count, replace=False, p=_KIND_SHARES)
    angle = rng.uniform(0, 2 * np.pi)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ramp = np.cos(angle) * x / width + np.sin(angle) * y / height + 0.4 * noise(rng, height, width, 60)
    cuts = np.quantile(ramp, (np.arange(1, count) + rng.uniform(-0.2, 0.2, count - 1)) / count)
    region = np.digitize(ramp, cuts)
    image = np.zeros((height, width, 3), np.float32)
    labels = np.zeros((height, width), np.uint8)
    for number, kind in enumerate(kinds):
        inside = region == number
        image[inside] = _texture(rng, int(kind), height, width)[inside]
        labels[inside] = IGNORE_LABEL if kind == _UNLABELLED else kind + 1
    return image, labels


def _segments(scene, annotations: list):
    """The segment ids (H, W) of things and stuff (0: unlabelled), and their ``segments_info``."""
    categories = [*(annotation["category_id"] for annotation in annotations), *STUFF_CATEGORY_IDS]
    masks = [scene.owner == number for number in range(1, len(annotations) + 1)]
    masks += [(scene.owner == 0) & (scene.ground == label) for label in range(1, len(STUFF_CLASSES) + 1)]
    ids, segments = np.zeros(scene.owner.shape, np.int32), []
    for number, (category, mask) in enumerate(zip(categories, masks)):
        if mask.any():
            identifier = category * _SEGMENT_ID + number
            ids[mask] = identifier
            box = [int(v) for v in cv2.boundingRect(mask.view(np.uint8))]
            segments.append(
                {"id": identifier, "category_id": category, "area": int(mask.sum()), "bbox": box, "iscrowd": 0}
            )
    return ids, segments


def _write_png(path: Path, values: np.ndarray) -> None:
    if not cv2.imwrite(str(path), values):
        raise OSError(f"{path.name} could not be written")


def _write(folder: Path, split: str, num_images: int, seed: int) -> dict:
    """Write images, semantic maps, panoptic PNGs and their JSON file; return the content of the instances file."""
    stuff, panoptic = folder / f"stuff_{split}", folder / f"panoptic_{split}"
    stuff.mkdir()
    panoptic.mkdir()
    annotations = []

    def write_labels(scene, image, instances):
        name = f"{Path(image['file_name']).stem}.png"
        _write_png(stuff / name, np.where(scene.owner > 0, 0, scene.ground))
        ids, segments = _segments(scene, instances)
        bytes_of_ids = np.stack([ids >> 16, ids >> 8 & 255, ids & 255], axis=-1)  # red is the lowest byte
        _write_png(panoptic / name, bytes_of_ids.astype(np.uint8))
        annotations.append({"image_id": image["id"], "file_name": name, "segments_info": segments})

    draw = functools.partial(draw_scene, paint_ground=paint_stuff)
    content = write_images(folder, split, num_images, seed, draw, write_labels)
    categories = [
        {"id": identifier, "name": name, "supercategory": kind, "isthing": int(kind == "shape")}
        for kind, identifiers, names in (
            ("shape", CATEGORY_IDS, CLASSES),
            ("ground", STUFF_CATEGORY_IDS, STUFF_CLASSES),
        )
        for identifier, name in zip(identifiers, names)
    ]
    labels = {"images": content["images"], "annotations": annotations, "categories": categories}
    write_json(folder / f"panoptic_{split}.json", labels)
    return content


def make_shapes_panoptic(folder, split: str, num_images: int, seed: int) -> str:
    """
    Draw a split unless it exists, like :func:`instseg_d2.data.make_shapes`, with ``stuff_<split>/`` (semantic maps,
    PNG), ``panoptic_<split>/`` and ``panoptic_<split>.json`` (COCO-panoptic).

    Returns:
        str: path of the JSON file of the instances.

    Raises:
        DatasetError: the folder is not writable or full.
    """
    info = {"description": "instseg_d2 panoptic shapes", "version": VERSION, "seed": seed, "num_images": num_images}
    return make_split(folder, split, info, lambda drawing: _write(drawing, split, num_images, seed))


class _PanopticSource(CocoSource):
    """Loads the records of the instances, each with the file of its semantic map."""

    def __init__(self, *args, sem_seg_root: Path, **kwargs):
        super().__init__(*args, **kwargs)
        self._sem_seg_root = sem_seg_root

    def __call__(self) -> list:
        records = super().__call__()
        for record in records:
            record["sem_seg_file_name"] = str(self._sem_seg_root / f"{Path(record['file_name']).stem}.png")
        return records


def register_split(name: str, folder: Path, split: str, num_images: int, seed: int) -> None:
    """Register a split below ``folder``, drawn on first use, with the metadata of a COCO panoptic set."""
    json_file, images, stuff = folder / f"{split}.json", folder / "images", folder / f"stuff_{split}"
    draw = functools.partial(make_shapes_panoptic, folder, split, num_images, seed)
    DatasetCatalog.register(name, _PanopticSource(name, json_file, images, draw, sem_seg_root=stuff))
    MetadataCatalog.get(name).set(
        evaluator_type="coco_panoptic_seg",
        json_file=str(json_file),
        image_root=str(images),
        sem_seg_root=str(stuff),
        panoptic_root=str(folder / f"panoptic_{split}"),
        panoptic_json=str(folder / f"panoptic_{split}.json"),
        stuff_classes=["things", *STUFF_CLASSES],
        stuff_dataset_id_to_contiguous_id={0: 0, **{c: i for i, c in enumerate(STUFF_CATEGORY_IDS, start=1)}},
        ignore_label=IGNORE_LABEL,
    )


def register_shapes_panoptic() -> None:
    """Register ``shapes_panoptic_train`` (400 images) and ``shapes_panoptic_val`` (100) below the cache folder."""
    for split, (num_images, seed) in SPLITS.items():
        register_split(f"shapes_panoptic_{split}", cache_folder(f"shapes_panoptic_v{VERSION}"), split, num_images, seed)
