import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps, UnidentifiedImageError

from instseg_d2.data import read_image
from instseg_d2.data.images import further_frames, image_size, image_suffixes
from instseg_d2.errors import ImageError

H, W = 6, 9


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)


def save(tmp_path, image, name="image.png", **kwargs):
    path = tmp_path / name
    image.save(path, **kwargs)
    return str(path)


def test_channel_order(tmp_path, rgb):
    path = save(tmp_path, Image.fromarray(rgb))
    assert np.array_equal(read_image(path, "RGB"), rgb)
    assert np.array_equal(read_image(path, "BGR"), rgb[..., ::-1])
    with pytest.raises(ValueError, match="BGR or RGB"):
        read_image(path, "L")


def test_grey_rgba_palette_and_bilevel(tmp_path, rgb):
    grey = rgb[..., 0]
    three = np.repeat(grey[..., None], 3, axis=2)
    assert np.array_equal(read_image(save(tmp_path, Image.fromarray(grey))), three)
    rgba = np.dstack([rgb, np.full((H, W), 17, np.uint8)])
    assert np.array_equal(read_image(save(tmp_path, Image.fromarray(rgba)), "RGB"), rgb)
    palette = Image.fromarray(rgb).quantize(16)
    assert np.array_equal(read_image(save(tmp_path, palette), "RGB"), np.asarray(palette.convert("RGB")))
    bits = Image.fromarray(grey > 100)
    assert np.array_equal(read_image(save(tmp_path, bits)), np.repeat((grey > 100)[..., None] * 255, 3, 2))


@pytest.mark.parametrize("name", ["image.png", "image.tif"])
def test_sixteen_bits_keep_their_high_byte(tmp_path, name):
    values = (np.arange(H * W, dtype=np.uint16) * 1201).reshape(H, W)
    path = save(tmp_path, Image.fromarray(values), name)
    assert np.array_equal(read_image(path), np.repeat((values >> 8)[..., None], 3, 2))


def test_cmyk(tmp_path):
    image = Image.new("CMYK", (W, H), (0, 255, 255, 0))  # red
    pixels = read_image(save(tmp_path, image, "image.jpg", quality=100), "RGB")
    assert pixels.shape == (H, W, 3)
    assert pixels.dtype == np.uint8
    assert pixels[..., 0].min() > 240
    assert pixels[..., 1:].max() < 15


def test_exif_rotation(tmp_path, rgb):
    exif = Image.Exif()
    exif[274] = 6  # the camera was turned: show it rotated clockwise
    path = save(tmp_path, Image.fromarray(rgb), exif=exif)
    turned = np.rot90(rgb, -1)
    assert np.array_equal(read_image(path, "RGB"), turned)
    assert image_size(path) == (H, W)
    assert np.array_equal(read_image(path, "RGB", size=(H, W)), turned)
    # Annotations that were made on the stored pixels get the stored pixels.
    assert np.array_equal(read_image(path, "RGB", size=(W, H)), rgb)


def _pillow_turns(rgb, orientation):
    return np.asarray(ImageOps.exif_transpose(_with_orientation(Image.fromarray(rgb), orientation)))


def _with_orientation(image, orientation):
    image.getexif()[274] = orientation
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_of_every_kind_of_file(tmp_path, rgb, orientation):
    expected = _pillow_turns(rgb, orientation)
    size = expected.shape[1::-1]
    exif = Image.Exif()
    exif[274] = orientation
    for name, mode, options in (
        ("a.png", "RGB", {}),
        ("a.webp", "RGB", {"lossless": True}),
        ("a.tif", "RGB", {}),
        ("a.tif", "L", {}),
        ("a.tif", "I;16", {}),
        ("a.tif", "F", {}),
        ("a.tif", "L", {"compression": "tiff_lzw"}),
        ("a.png", "I;16", {}),
    ):
        values = rgb if mode == "RGB" else rgb[..., 0]
        values = values.astype({"I;16": np.uint16, "F": np.float32}.get(mode, np.uint8))
        path = save(tmp_path, Image.fromarray(values), name, exif=exif, **options)
        found = read_image(path, "RGB", value_range=(0, 255))
        assert (found == (expected if mode == "RGB" else expected[..., :1])).all(), (name, mode, options)
        assert image_size(path) == size


def test_a_turned_image_of_16_bits_a_color(tmp_path, rgb):
    path = str(tmp_path / "a.png")
    cv2.imwrite(path, rgb[..., ::-1].astype(np.uint16) << 8)
    data = Path(path).read_bytes()
    exif = Image.Exif()
    exif[274] = 6
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    Path(path).write_bytes(data[:33] + chunk + data[33:])  # after the header
    found = read_image(path, "RGB", value_range=(0, 65535))
    assert (found == np.rot90(rgb, -1)).all()
    assert (read_image(path, "RGB", (W, H), (0, 65535)) == rgb).all()


def test_formats_of_opencv_alone(tmp_path, rgb):
    path = str(tmp_path / "a.hdr")
    cv2.imwrite(path, rgb.astype(np.float32) / 256)
    with pytest.raises(UnidentifiedImageError):
        Image.open(path)
    expected = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    assert (read_image(path, value_range=(0, 1)) == np.floor(expected * 256)).all()
    assert image_size(path) == (W, H)


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".avif", ".JPG", ".Tiff", ".jp2", ".hdr", ".ppm", ".webp", ".qoi"])
def test_suffixes_of_images(suffix):
    assert suffix.lower() in image_suffixes()


@pytest.mark.parametrize("suffix", [".txt", ".pdf", ".h5", ".json", ".mp4", "", ".xml", ".npy"])
def test_suffixes_of_other_files(suffix):
    assert suffix not in image_suffixes()


def test_further_pages_and_frames(tmp_path, rgb):
    frames = [Image.fromarray(np.roll(rgb, i, 0)) for i in range(3)]
    for name in ("a.tif", "a.gif", "a.webp", "a.png", "a.avif"):
        path = save(tmp_path, frames[0], name, save_all=True, append_images=frames[1:])
        assert further_frames(path) == 2, name
        assert read_image(path, "RGB").shape == (H, W, 3)
    assert (read_image(str(tmp_path / "a.tif"), "RGB") == rgb).all()
    for name in ("one.tif", "one.gif", "one.jpg"):
        assert further_frames(save(tmp_path, frames[0], name)) == 0
    (tmp_path / "none.gif").write_bytes(b"GIF89a")
    assert further_frames(str(tmp_path / "none.gif")) == further_frames(str(tmp_path / "absent.gif")) == 0


def test_heic_without_its_package_says_what_is_missing(tmp_path):
    (tmp_path / "a.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(ImageError, match=r"a\.HEIC cannot be read .*pip install pillow-heif"):
        read_image(str(tmp_path / "a.HEIC"))


def test_unreadable_images(tmp_path, rgb):
    with pytest.raises(ImageError, match=r"none\.png: no such image file"):
        read_image(str(tmp_path / "none.png"))
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    with pytest.raises(ImageError, match=r"text\.jpg cannot be read as an image \(unknown to the installed Pillow"):
        read_image(str(text))
    text.write_bytes(b"")
    with pytest.raises(ImageError, match=r"text\.jpg cannot be read as an image \(it is empty\)"):
        read_image(str(text))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    cut = tmp_path / "cut.jpg"
    noise.save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"cut\.jpg cannot be read as an image"):
        read_image(str(cut))
