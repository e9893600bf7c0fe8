"""Checks the images of a COCO file: their sizes and, for ``check_data``, their files."""

import hashlib
import os

from tqdm import tqdm

from ..errors import ImageError
from .coco_masks import LARGEST_SIDE
from .faults import KEPT, NOTE, Findings
from .images import further_frames, image_size, read_image
from .missing import near_misses
from .value_range import survey

__all__ = ["open_images", "size_images"]

LONGEST = 100  # times the shorter side; a longer image may become one pixel wide when it is resized


def _size_is_known(image: dict) -> bool:
    sides = (image.get("width"), image.get("height"))
    return all(isinstance(side, int) and 0 < side <= LARGEST_SIDE for side in sides)


def _note_shape(image: dict, found: Findings) -> None:
    short, long = sorted((image["width"], image["height"]))
    if long > LONGEST * short:
        name = f"{image['file_name']}: {image['width']} x {image['height']}"
        found.add(f"images: one side over {LONGEST} times as long as the other", name)


def size_images(images: list, image_root: str, found: Findings) -> list:
    """The images whose width and height are known; missing sizes are read from the files."""
    kept, names = [], set()
    for image in images:
        name = image["file_name"]
        if not _size_is_known(image):
            try:
                image["width"], image["height"] = image_size(os.path.join(image_root, name))
            except ImageError as error:
                found.add("images: no width and height, and no readable file", f"image {image['id']!r}: {error}")
                continue
            found.add("images: no width and height", name)
        if name in names:
            found.add("images: file listed twice", name)
        names.add(name)
        _note_shape(image, found)
        kept.append(image)
    return kept


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.sha1(file.read()).hexdigest()


def _check_values(files: list, found: Findings) -> None:
    """Check a sample of the images for more than eight bits."""
    values = survey(files)
    if values.deep:
        low, high = values.value_range
        found.add("images: more than 8 bits", f"values {low:g} to {high:g} become 0 to 255", values.deep)
    for file, image in values.misfits:
        name = f"{os.path.basename(file)}: {image.low:g} to {image.high:g}"
        found.add("images: values far from the range of the others", name)


def open_images(images: list, image_root: str, found: Findings, progress: bool) -> tuple[list, dict, dict]:
    """
    Read every image.

    Returns:
        The usable images; {id of a repeated entry: id of the first entry of the same file}; {hash: file name}.
    """
    kept, same, by_name, pictures, missing = [], {}, {}, {}, []
    for image in tqdm(images, desc="images", unit="", disable=not progress, leave=False):
        name = image["file_name"]
        path = os.path.join(image_root, name)
        if name in by_name:
            found.add("images: file listed twice", name)
            same[image["id"]] = by_name[name]
            continue
        if not os.path.isfile(path):
            found.add("images: missing file", name)
            missing.append(name)
            continue
        size = (image.get("width"), image.get("height"))
        known = _size_is_known(image)
        try:
            height, width = read_image(path, size=size if known else None).shape[:2]
        except ImageError as error:
            found.add("images: corrupt file", str(error))
            continue
        if not known:
            found.add("images: no width and height", name)
            image["width"], image["height"] = width, height
        elif (width, height) != size:
            found.add("images: file of another size than listed", f"{name}: {width} x {height}, not {size}")
            continue
        digest = _digest(path)
        if digest in pictures:
            found.add("images: same picture under two names", f"{name} and {pictures[digest]}")
        if further_frames(path):
            found.add("images: further pages or frames, which are not read", name)
        pictures.setdefault(digest, name)
        by_name[name] = image["id"]
        _note_shape(image, found)
        kept.append(image)
    for reason, count, example in near_misses(missing, image_root):
        found.add(f"images: missing, but there {reason}", example, count, (NOTE, KEPT))
    _check_values([os.path.join(image_root, image["file_name"]) for image in kept], found)
    return kept, same, pictures
