"""Reads images of every common format as three channels of eight bits. H x W pixels."""

import contextlib
import functools
import io
import os
from typing import BinaryIO, Optional

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import ImageError
from .eight_bits import three_channels

with contextlib.suppress(ImportError, OSError):  # HEIC, if its package is installed
    import pillow_heif

    pillow_heif.register_heif_opener()

__all__ = ["deep_pixels", "further_frames", "image_size", "image_suffixes", "read_image"]

HEIC_SUFFIXES = (".heic", ".heif", ".hif")
_OPENCV_SUFFIXES = (".exr", ".hdr", ".pic", ".sr", ".pxm")  # not supported by Pillow
_NOT_DECODED = ("BUFR", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow recognises but cannot read them
_ANIMATED = ("AVIF", "GIF", "PNG", "TIFF", "WEBP")  # formats with several frames or pages
_EXIF_ORIENTATION = 274
_SWAPS_SIDES = (5, 6, 7, 8)  # EXIF orientations that turn by 90 degrees


@functools.cache
def image_suffixes() -> frozenset:
    """The suffixes of files that the installed Pillow or OpenCV can read, in lower case with the dot."""
    readable = {
        suffix
        for suffix, kind in Image.registered_extensions().items()
        if kind in Image.OPEN and kind not in _NOT_DECODED
    }
    return frozenset(readable.union(filter(cv2.haveImageWriter, _OPENCV_SUFFIXES)))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that must still be applied; Pillow rotates TIFF files itself."""
    try:
        return 1 if image.format == "TIFF" else image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # the pixels are readable despite broken EXIF data
        return 1


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Apply an EXIF orientation from 1 to 8 to the pixels."""
    if orientation in _SWAPS_SIDES:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _is_deep_color(image: Image.Image) -> bool:
    """True for 16-bit colours, which Pillow would reduce to the upper eight bits."""
    if image.mode[0] in "IF" or not image.tile:
        return False
    arguments = image.tile[0][3]
    raw_mode = arguments[0] if isinstance(arguments, tuple) else arguments
    return ";16" in str(raw_mode) or arguments == ("RGB", 65535)


def _opencv(data: bytes) -> Optional[np.ndarray]:
    """Pixels (H, W) or (H, W, 3) RGB with all their bits; None if OpenCV cannot read them."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return pixels if pixels is None or pixels.ndim == 2 else pixels[:, :, 2::-1]


def _opened(source) -> BinaryIO:
    """A file, or the content of one."""
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _pixels(source, deep_only: bool = False) -> tuple[Optional[np.ndarray], int]:
    """
    Pixels (H, W) or (H, W, 3) RGB with all their bits, and the EXIF orientation that must still be applied.

    Args:
        source: name of a file, or its content.
        deep_only: return None for eight-bit images, without decoding them.
    """
    # Given a file name instead, Pillow 13 maps a rotated grey TIFF into memory and mixes up its rows.
    with _opened(source) as file:
        try:
            with Image.open(file) as image:
                grey, deep_color = image.mode[0] in "IF", _is_deep_color(image)
                if deep_only and not grey and not deep_color:
                    return None, 1
                # The orientation comes last: it may be stored after the pixels, which Pillow decodes to reach it.
                pixels = None
                if deep_color:
                    with _opened(source) as again:
                        pixels = _opencv(again.read())
                if pixels is None:
                    pixels = np.asarray(image if grey else image.convert("RGB"))
                return pixels, _orientation(image)
        except UnidentifiedImageError:
            file.seek(0)
            data = file.read()
            pixels = _opencv(data) if data else None
            if pixels is None:
                reason = "unknown to the installed Pillow and OpenCV" if data else "it is empty"
                raise UnidentifiedImageError(reason) from None
            return (None if deep_only and pixels.dtype == np.uint8 else pixels), 1


def _unreadable(source, error: Exception) -> ImageError:
    name = "the content" if isinstance(source, bytes) else str(source)
    hint = "; pip install pillow-heif" if name.lower().endswith(HEIC_SUFFIXES) else ""
    return ImageError(f"{name} cannot be read as an image ({error}{hint}).")


def read_image(source, format: str = "BGR", size=None, value_range=()) -> np.ndarray:
    """
    Read a grey, RGB, RGBA, palette, CMYK, 16-bit or float image and apply its EXIF orientation.

    Args:
        source: path of the image, or the bytes of the file.
        format: order of the channels, "BGR" or "RGB".
        size: optional (width, height) in pixels of the annotated image. If only the stored, unrotated pixels have this
            size, they are returned.
        value_range: (low, high) that become 0 and 255 in images of more than eight bits; empty: estimated from this
            image, see `eight_bits.likely_range`. Eight-bit images keep their values.

    Returns:
        array of shape (height, width, 3), uint8.

    Raises:
        ImageError: the file is missing or not a readable image.
        ValueError: the format is neither BGR nor RGB.
    """
    if format not in ("BGR", "RGB"):
        raise ValueError(f"format must be BGR or RGB; got {format!r}.")
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise ImageError(f"{source}: no such image file.")
    try:
        pixels, orientation = _pixels(source)
        height, width = pixels.shape[:2]
        stored_fits = size is not None and (width, height) == tuple(size) and width != height
        if not (orientation in _SWAPS_SIDES and stored_fits):
            pixels = _turned(pixels, orientation)
        pixels = three_channels(pixels, value_range)
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, struct.error and more
        raise _unreadable(source, error) from error
    return pixels if format == "RGB" else pixels[:, :, ::-1]


def deep_pixels(file_name) -> Optional[np.ndarray]:
    """
    The stored pixels (H, W) or (H, W, 3) of an image with more than eight bits; None for an eight-bit image, of which
    only the header is read.

    Raises:
        ImageError: the file is missing or not a readable image.
    """
    try:
        return _pixels(file_name, deep_only=True)[0]
    except Exception as error:
        raise _unreadable(file_name, error) from error


def image_size(file_name):
    """
    (width, height) of an image as ``read_image`` returns it. Only the header is read if Pillow knows the format.

    Raises:
        ImageError: the file is missing or not an image.
    """
    try:
        with Image.open(file_name) as image:
            width, height = image.size
            turned = _orientation(image) in _SWAPS_SIDES
    except UnidentifiedImageError:
        height, width = read_image(file_name).shape[:2]
        return width, height
    except Exception as error:
        raise _unreadable(file_name, error) from error
    return (height, width) if turned else (width, height)


def further_frames(file_name) -> int:
    """The number of pages or frames after the first, which is the only one that is read; 0 if unknown."""
    try:
        with Image.open(file_name) as image:
            return getattr(image, "n_frames", 1) - 1 if image.format in _ANIMATED else 0
    except Exception:  # reading the image will report the fault
        return 0
