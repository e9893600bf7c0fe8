import numpy as np
import pytest
from PIL import Image

from instseg_d2.data import read_image
from instseg_d2.data.images import image_size
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


def test_floats(tmp_path):
    values = np.linspace(0, 1, H * W, dtype=np.float32).reshape(H, W)
    path = save(tmp_path, Image.fromarray(values), "image.tif")
    assert np.array_equal(read_image(path)[..., 0], (values * 255).astype(np.uint8))
    path = save(tmp_path, Image.fromarray(values * 300), "image.tif")
    assert np.array_equal(read_image(path)[..., 0], (values * 300).clip(0, 255).astype(np.uint8))


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


def test_unreadable_images(tmp_path, rgb):
    with pytest.raises(ImageError, match=r"none\.png: there is no such image file"):
        read_image(str(tmp_path / "none.png"))
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    with pytest.raises(ImageError, match=r"text\.jpg cannot be read as an image"):
        read_image(str(text))
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    cut = tmp_path / "cut.jpg"
    noise.save(cut)
    cut.write_bytes(cut.read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"cut\.jpg cannot be read as an image"):
        read_image(str(cut))
