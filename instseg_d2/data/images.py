"""Reading images of every common kind as three channels of eight bits."""

import os

import numpy as np
from PIL import Image, ImageOps

from ..errors import ImageError

__all__ = ["image_size", "read_image"]

_EXIF_ORIENTATION = 274
_SWAPS_SIDES = (5, 6, 7, 8)  # EXIF orientations that turn by 90 degrees


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 or 32 bits an 8-bit one: the high byte of 16 bits; floats in 0..1 are stretched to 0..255."""
    values = np.asarray(image)
    if values.dtype.kind == "f":
        values = values * 255.0 if values.size and values.max() <= 1.0 else values
    elif image.mode.startswith("I;16") or (values.size and values.max() > 255):
        values = values.astype(np.int64) >> 8
    return Image.fromarray(np.nan_to_num(values).clip(0, 255).astype(np.uint8))


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # broken EXIF data do not make the pixels unreadable
        return 1


def _upright(image: Image.Image, size) -> Image.Image:
    """Apply the EXIF orientation unless the annotated ``size`` says that the annotations ignore it."""
    orientation = _orientation(image)
    stored_fits = size is not None and image.size == tuple(size) and image.size[0] != image.size[1]
    if orientation == 1 or (orientation in _SWAPS_SIDES and stored_fits):
        return image
    return ImageOps.exif_transpose(image)


def read_image(file_name: str, format: str = "BGR", size=None) -> np.ndarray:
    """
    Read grey, RGB, RGBA, palette, CMYK, 16-bit or float images, rotated as their EXIF data say.

    Args:
        file_name: path of the image.
        format: order of the channels, "BGR" or "RGB".
        size: optional (width, height) in pixels that the annotations were made for. Where it fits only the stored,
            unrotated pixels, these are returned.

    Returns:
        array of shape (height, width, 3), uint8.

    Raises:
        ImageError: the file is missing or no readable image.
        ValueError: another format.
    """
    if format not in ("BGR", "RGB"):
        raise ValueError(f"an image format is BGR or RGB, not {format!r} (INPUT.FORMAT).")
    if not os.path.isfile(file_name):
        raise ImageError(f"{file_name}: there is no such image file.")
    try:
        with Image.open(file_name) as image:
            image = _upright(image, size)
            if image.mode == "F" or image.mode.startswith("I"):
                image = _eight_bits(image)
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error and more
        raise ImageError(f"{file_name} cannot be read as an image ({error}).") from error
    return pixels if format == "RGB" else pixels[:, :, ::-1]


def image_size(file_name: str):
    """
    (width, height) of an image as ``read_image`` returns it, from the header alone.

    Raises:
        ImageError: the file is missing or no image.
    """
    try:
        with Image.open(file_name) as image:
            width, height = image.size
            turned = _orientation(image) in _SWAPS_SIDES
    except Exception as error:
        raise ImageError(f"{file_name} cannot be read as an image ({error}).") from error
    return (height, width) if turned else (width, height)
