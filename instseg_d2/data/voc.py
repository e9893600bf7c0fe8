"""
PASCAL VOC 2012 and SBD as COCO-format sets.

VOC (VOCdevkit/VOC2012) has an object map (SegmentationObject: the number of the object at each pixel, 0 for background,
255 for the void along borders) and a class map (SegmentationClass). SBD, the Semantic Boundaries Dataset
(benchmark_RELEASE/dataset), has an inst/NAME.mat for images from the same JPEGImages.
"""

import logging
from pathlib import Path
from typing import Optional

import cv2
import numpy as np
import pycocotools.mask as mask_util
from PIL import Image
from scipy.io import loadmat
from tqdm import tqdm

from ..errors import DatasetError
from ..files import write_json

__all__ = [
    "CLASSES",
    "COLORS",
    "PALETTE",
    "VOID",
    "VOID_COLOR",
    "object_annotations",
    "prepare_voc",
    "read_sbd_objects",
    "read_voc_objects",
    "voc_splits",
]

logger = logging.getLogger(__name__)

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
VOID = 255
# VOC's colours, (256, 3): the bits of a number go to r, g and b in turn, to their highest bits first.
PALETTE = sum(((np.arange(256)[:, None] >> (3 * bit + np.arange(3))) & 1) << (7 - bit) for bit in range(8))
COLORS = {(r << 16) | (g << 8) | b: number for number, (r, g, b) in enumerate(PALETTE.tolist())}
VOID_COLOR = 0xE0E0C0


def _require(path: Path, what: str) -> Path:
    if not path.exists():
        kind = "file" if path.suffix else "folder"
        raise DatasetError(f"{path}: no such {kind}; {what}.")
    return path


def _names(path: Path) -> list:
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


def voc_splits(voc_root, sbd_root=None) -> dict:
    """
    The image names of the common splits. "val" is VOC's (1,449 images). "train" is VOC's (1,464 images) or, with SBD,
    VOC's and all of SBD's that are not in "val" (10,582 images).

    Args:
        voc_root: VOCdevkit/VOC2012.
        sbd_root: benchmark_RELEASE/dataset; None: only VOC.

    Returns:
        {"train": names, "val": names}, each sorted.

    Raises:
        DatasetError: a folder or list is missing.
    """
    voc_root = Path(voc_root)
    for folder in ("JPEGImages", "SegmentationObject", "SegmentationClass", "ImageSets/Segmentation"):
        _require(voc_root / folder, "--voc must name the folder VOCdevkit/VOC2012 of VOCtrainval_11-May-2012.tar")
    lists = {split: voc_root / "ImageSets" / "Segmentation" / f"{split}.txt" for split in ("train", "val")}
    splits = {split: set(_names(_require(path, "VOC 2012 is incomplete"))) for split, path in lists.items()}
    if sbd_root is not None:
        what = "--sbd must name the folder benchmark_RELEASE/dataset of benchmark.tgz"
        _require(Path(sbd_root) / "inst", what)
        for split in ("train", "val"):
            splits["train"].update(_names(_require(Path(sbd_root) / f"{split}.txt", what)))
    splits["train"] -= splits["val"]
    return {split: sorted(names) for split, names in splits.items()}


def _read_map(path: Path, colors: Optional[dict] = None) -> np.ndarray:
    """A map of numbers; ``colors`` {r << 16 | g << 8 | b: number} are those of CVAT, default: VOC's."""
    image = Image.open(path)
    if image.mode not in (("RGB", "RGBA") if colors is None else ("RGB", "RGBA", "P")):
        return np.array(image)  # palette images: the indices are the numbers
    shown = np.array(image.convert("RGB")).astype(int) @ (1 << 16, 1 << 8, 1)
    colors = colors or COLORS
    found, place = np.unique(shown, return_inverse=True)
    unknown = [color for color in found.tolist() if color not in colors]
    if unknown:
        raise DatasetError(f"{path}: the colour #{unknown[0]:06x} is not in VOC's palette, nor in labelmap.txt.")
    return np.array([colors[color] for color in found.tolist()])[place].reshape(shown.shape)


def read_voc_objects(
    voc_root,
    name: str,
    class_count: int = len(CLASSES),
    folders: tuple = ("SegmentationObject", "SegmentationClass"),
    class_colors: Optional[dict] = None,
):
    """
    The objects of a VOC image; the void along their borders belongs to no object.

    Args:
        class_count: number of classes of the set.
        folders: names of the folders of the two maps.
        class_colors: see `_read_map`; default: VOC's.

    Returns:
        (H, W) map of object numbers, 0 elsewhere; {number: class from 0}, the majority class of its pixels.

    Raises:
        DatasetError: a map is missing, or the two maps differ in size.
    """
    maps = []
    for folder, colors in zip(folders, (None, class_colors)):
        path = _require(Path(voc_root) / folder / f"{name}.png", "VOC 2012 is incomplete")
        maps.append(_read_map(path, colors))
    objects, labels = maps
    if objects.shape != labels.shape or objects.ndim != 2:
        raise DatasetError(f"{name}: SegmentationObject and SegmentationClass are not palette images of one size.")
    objects = np.where((objects == VOID) | (labels == VOID) | (labels == 0), 0, objects)
    classes = {}
    for number in np.unique(objects[objects > 0]):
        label = int(np.bincount(labels[objects == number]).argmax())
        if label > class_count:
            raise DatasetError(f"{name}: {folders[1]} has class {label}, but there are only {class_count}.")
        classes[int(number)] = label - 1
    return objects, classes


def read_sbd_objects(sbd_root, name: str):
    """
    The objects of an SBD image.

    Returns:
        (H, W) map of object numbers, 0 elsewhere; {number: class from 0}.

    Raises:
        DatasetError: the file is missing, is not an SBD file, or an object has no class.
    """
    path = _require(Path(sbd_root) / "inst" / f"{name}.mat", "SBD is incomplete")
    try:
        content = loadmat(path, squeeze_me=True, struct_as_record=False)["GTinst"]
        objects, labels = np.asarray(content.Segmentation), np.atleast_1d(content.Categories)
    except (KeyError, AttributeError, ValueError, NotImplementedError, OSError) as error:
        raise DatasetError(f"{path} is not an SBD instance file ({error}).") from error
    numbers = np.unique(objects[objects > 0])
    if numbers.size and (numbers.max() > len(labels) or not 1 <= labels.min() <= labels.max() <= len(CLASSES)):
        raise DatasetError(f"{path} has objects without one of the {len(CLASSES)} classes.")
    return objects, {int(number): int(labels[number - 1]) - 1 for number in numbers}


def object_annotations(objects: np.ndarray, classes: dict, image_id: int) -> list:
    """COCO annotations without ids, for a map of object numbers and {number: class from 0}."""
    annotations = []
    for number, label in classes.items():
        mask = (objects == number).astype(np.uint8)
        rle = mask_util.encode(np.asfortranarray(mask))
        annotations.append(
            {
                "image_id": image_id,
                "category_id": label + 1,
                "segmentation": {"size": list(mask.shape), "counts": rle["counts"].decode()},
                "area": int(mask.sum()),
                "bbox": [float(v) for v in cv2.boundingRect(mask)],
                "iscrowd": 0,
            }
        )
    return annotations


def prepare_voc(voc_root, sbd_root: Optional[str], output) -> dict:
    """
    Write train.json and val.json, COCO instances files with RLE masks for VOC's JPEGImages, and a link ``images`` to
    that folder if links can be made. Images that VOC annotates use VOC's masks, the others SBD's.

    Args:
        voc_root, sbd_root: see `voc_splits`.
        output: folder to write to; created if missing.

    Returns:
        {"train": (path, number of images, number of objects), "val": ...}.

    Raises:
        DatasetError: a file is missing, broken or cannot be written.
    """
    voc_root, output = Path(voc_root), Path(output)
    written = {}
    for split, names in voc_splits(voc_root, sbd_root).items():
        content = {
            "info": {
                "description": f"PASCAL VOC 2012 {split}" + (" with SBD" if sbd_root and split == "train" else "")
            },
            "images": [],
            "annotations": [],
            "categories": [{"id": number, "name": name} for number, name in enumerate(CLASSES, start=1)],
        }
        for image_id, name in enumerate(tqdm(names, desc=split, unit="image", disable=None), start=1):
            _require(voc_root / "JPEGImages" / f"{name}.jpg", "VOC 2012 is incomplete")
            in_voc = (voc_root / "SegmentationObject" / f"{name}.png").is_file()
            source, reader = (
                (voc_root, read_voc_objects) if in_voc or sbd_root is None else (sbd_root, read_sbd_objects)
            )
            objects, classes = reader(source, name)
            height, width = objects.shape
            content["images"].append({"id": image_id, "file_name": f"{name}.jpg", "height": height, "width": width})
            content["annotations"] += object_annotations(objects, classes, image_id)
        for number, annotation in enumerate(content["annotations"], start=1):
            annotation["id"] = number
        path = output / f"{split}.json"
        write_json(path, content)
        written[split] = (str(path), len(content["images"]), len(content["annotations"]))
    _link(output / "images", (voc_root / "JPEGImages").resolve())
    return written


def _link(link: Path, target: Path) -> None:
    """Create a link if possible; the data set also works without it."""
    if link.is_symlink() or link.exists():
        return
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        logger.warning("%s could not be created: the images are in %s.", link, target)
