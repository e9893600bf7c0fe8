"""
A small synthetic data set for instance segmentation, drawn on demand: ``shapes_train`` and ``shapes_val``.

Rotated, textured shapes of six classes, from under 32^2 to over 96^2 pixels, overlap on textured backgrounds. A mask is
the visible part of an object. The seed determines everything.
"""

import functools
import json
import shutil
import tempfile
from pathlib import Path

import cv2
import numpy as np
import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock
from tqdm import tqdm

from ...errors import DatasetError
from ...files import cache_folder, write_json
from ..coco import register_coco
from .drawing import CLASSES, draw_scene

__all__ = ["make_shapes", "register_shapes"]

VERSION = 1
CATEGORY_IDS = (1, 2, 3, 5, 8, 13)  # with gaps, like COCO's
SPLITS = {"train": (400, 1), "val": (100, 2)}  # images, seed


def _polygon(mask: np.ndarray):
    """The outline of a mask (H, W) as [x0, y0, ...], exact to half a pixel; None if it has holes or several parts."""
    scale = 4
    fine = cv2.resize(mask, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    if len(contours) != 1:
        return None
    points = cv2.approxPolyDP(contours[0], 0.45 * scale, True)[:, 0]
    return (points + 0.5) / scale if len(points) >= 3 else None


def _segmentation(mask: np.ndarray, x0: int, y0: int, size, rng):
    """COCO segmentation of a mask with top left corner (x0, y0): polygons or RLE, compressed or not."""
    height, width = size
    polygon = _polygon(mask)
    if polygon is not None and rng.random() < 0.8:
        return [(polygon + np.array((x0, y0))).round(2).ravel().tolist()]
    whole = np.zeros(size, np.uint8, order="F")
    whole[y0 : y0 + mask.shape[0], x0 : x0 + mask.shape[1]] = mask
    if rng.random() < 0.2:
        pixels = whole.ravel(order="F")
        ends = np.flatnonzero(np.diff(pixels)) + 1
        runs = np.diff(np.concatenate(([0], ends, [pixels.size]))).tolist()
        return {"size": [height, width], "counts": [0, *runs] if pixels[0] else runs}
    rle = mask_util.encode(whole)
    return {"size": [height, width], "counts": rle["counts"].decode()}


def _annotations(scene, image_id: int, rng) -> list:
    annotations = []
    for number, label in enumerate(scene.labels, start=1):
        mask = (scene.owner == number).astype(np.uint8)
        x, y, w, h = cv2.boundingRect(mask)
        mask = mask[y : y + h, x : x + w]
        annotations.append(
            {
                "image_id": image_id,
                "category_id": CATEGORY_IDS[label],
                "segmentation": _segmentation(mask, x, y, scene.owner.shape, rng),
                "area": int(mask.sum()),
                "bbox": [float(v) for v in (x, y, w, h)],  # Detectron2 resizes integers to integers
                "iscrowd": 0,
            }
        )
    return annotations


def write_images(folder: Path, split: str, num_images: int, seed: int, draw=None, on_scene=None) -> dict:
    """
    Write the images of a split below ``folder/images`` and return its COCO annotations.

    Args:
        draw: rng -> Scene; default: ``draw_scene``.
        on_scene: called with the Scene, image entry and annotations of every image.
    """
    content = {
        "images": [],
        "annotations": [],
        "categories": [
            {"id": identifier, "name": name, "supercategory": "shape"}
            for identifier, name in zip(CATEGORY_IDS, CLASSES)
        ],
    }
    (folder / "images").mkdir()
    for image_id in tqdm(range(1, num_images + 1), desc=f"drawing shapes_{split}", unit="image", disable=None):
        rng = np.random.default_rng([VERSION, seed, image_id])
        scene = (draw or draw_scene)(rng)
        kind, options = ("png", []) if image_id % 10 == 0 else ("jpg", [cv2.IMWRITE_JPEG_QUALITY, 93])
        file_name = f"{split}_{image_id:05d}.{kind}"
        if not cv2.imwrite(str(folder / "images" / file_name), scene.image, options):
            raise OSError(f"{file_name} could not be written")
        height, width = scene.owner.shape
        content["images"].append({"id": image_id, "file_name": file_name, "width": width, "height": height})
        annotations = _annotations(scene, image_id, rng)
        content["annotations"] += annotations
        if on_scene is not None:
            on_scene(scene, content["images"][-1], annotations)
    for number, annotation in enumerate(content["annotations"], start=1):
        annotation["id"] = number
    return content


def _has_info(json_file: Path, info: dict) -> bool:
    return json_file.is_file() and json.loads(json_file.read_text()).get("info") == info


def make_shapes(folder, split: str, num_images: int, seed: int) -> str:
    """
    Draw a split of the data set unless it exists: ``<folder>/<split>.json`` and ``<folder>/images/``.

    The same seed gives the same files; a longer split starts with the images of a shorter one. The JSON file is written
    last, so a split that has one is complete.

    Args:
        folder: where to write; created if missing. Several splits can share it.
        split: prefix of the image names and name of the JSON file.
        num_images: number of images.
        seed: seed of the random numbers.

    Returns:
        str: path of the JSON file.

    Raises:
        DatasetError: the folder is not writable or full.
    """
    info = {"description": "instseg_d2 shapes", "version": VERSION, "seed": seed, "num_images": num_images}
    return make_split(folder, split, info, lambda drawing: write_images(drawing, split, num_images, seed))


def make_split(folder, split: str, info: dict, write) -> str:
    """
    Write a split with the files of :func:`make_shapes`, in the same order.

    Args:
        info: distinguishes this split from others of the same name; it is stored in the JSON file.
        write: called with an empty folder; fills it with the files and returns the content of the JSON file.
    """
    folder = Path(folder)
    json_file = folder / f"{split}.json"
    try:
        if _has_info(json_file, info):
            return str(json_file)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        with file_lock(str(json_file)):
            if _has_info(json_file, info):  # another process has drawn it meanwhile
                return str(json_file)
            json_file.unlink(missing_ok=True)
            drawing = Path(tempfile.mkdtemp(dir=folder, prefix=f".{split}-"))
            try:
                content = write(drawing)
                for file in [path for path in drawing.rglob("*") if path.is_file()]:
                    target = folder / file.relative_to(drawing)
                    target.parent.mkdir(exist_ok=True)
                    file.replace(target)
                write_json(json_file, {"info": info, **content})
            finally:
                shutil.rmtree(drawing, ignore_errors=True)
    except OSError as error:
        raise DatasetError(
            f"{folder} cannot be written ({error.strerror or error}); set INSTSEG_CACHE to a writable folder with free "
            "space."
        ) from error
    return str(json_file)


def register_shapes() -> None:
    """Register ``shapes_train`` (400 images) and ``shapes_val`` (100), drawn into the cache folder on first use."""
    folder = cache_folder(f"shapes_v{VERSION}")
    for split, (num_images, seed) in SPLITS.items():
        draw = functools.partial(make_shapes, folder, split, num_images, seed)
        register_coco(f"shapes_{split}", folder / f"{split}.json", folder / "images", prepare=draw)
