"""
Images of more than eight bits, made from an eight-bit picture and compared with it: every depth, disturbance and kind
of file.
"""

import json
import logging

import cv2
import numpy as np
import pytest
from PIL import Image

from instseg_d2.data import read_image
from instseg_d2.data.eight_bits import Extremes, extremes, likely_range, to_eight_bits
from instseg_d2.data.value_range import common_range, survey, trained_range
from instseg_d2.inference.image_predictor import to_rgb

H, W = 40, 50

# Ways to store an eight-bit picture in more bits.
DEPTHS = {
    "8 in 16": lambda x: x.astype(np.uint16),
    "8 in 32": lambda x: x.astype(np.int32),
    "12 in signed": lambda x: x.astype(np.int16) << 4,
    "10 in 16": lambda x: x.astype(np.uint16) << 2,
    "12 in 16": lambda x: x.astype(np.uint16) << 4,
    "14 in 16": lambda x: x.astype(np.uint16) << 6,
    "16, high byte": lambda x: x.astype(np.uint16) << 8,
    "16, times 257": lambda x: x.astype(np.uint16) * 257,
    "float 0..1": lambda x: (x / 255).astype(np.float32),
    "float -1..1": lambda x: (x / 127.5 - 1).astype(np.float32),
    "float 0..255": lambda x: x.astype(np.float32),
    "float 0..4095": lambda x: (x * (4095 / 255)).astype(np.float32),
    "float 0..65535": lambda x: x.astype(np.float32) * 257,
    "double 0..1": lambda x: x / 255,
    "half 0..1": lambda x: (x / 255).astype(np.float16),
}


def highest(x):
    return (np.finfo if x.dtype.kind == "f" else np.iinfo)(x.dtype).max


def nothing(x):
    pass


def one(value):
    def disturb(x):
        x[7, 9] = value if value is not None else highest(x)

    return disturb


def column(x):
    x[:, 30] = highest(x)


def salt(x):
    x[3::9, 4::9] = highest(x)


def overshoot(x):
    x[5:9, 5:9] = x.max() + (x.max() - x.min()) * 0.02


def hole(x):
    x[5:15, 5:15] = np.nan


DISTURBANCES = {"nothing": nothing, "hot pixel": one(None), "hot column": column, "salt": salt}
OF_FLOATS = {"nan": one(np.nan), "inf": one(np.inf), "-inf": one(-np.inf), "over": overshoot, "hole": hole}


@pytest.fixture(scope="module")
def picture():
    """(40, 50) uint8 from 2 to 250: a ramp with bright and dark discs."""
    image = np.linspace(20, 180, H * W).reshape(H, W).astype(np.uint8)
    cv2.circle(image, (12, 20), 8, 250, -1)
    cv2.circle(image, (40, 12), 6, 2, -1)
    return image


def stored(picture, depth, disturbance="nothing"):
    values = DEPTHS[depth](picture)
    before = values.copy()
    {**DISTURBANCES, **OF_FLOATS}[disturbance](values)
    same = (before == values) | (np.isnan(before) & np.isnan(values))
    return values, same


CASES = [(depth, d) for depth in DEPTHS for d in DISTURBANCES]
CASES += [(depth, d) for depth in DEPTHS if depth.split()[0] in ("float", "double", "half") for d in OF_FLOATS]


@pytest.mark.parametrize(("depth", "disturbance"), CASES)
def test_every_depth_comes_out_as_the_picture_it_was_made_of(picture, depth, disturbance):
    values, same = stored(picture, depth, disturbance)
    if disturbance != "over":
        assert 0 < (~same).sum() < 110 or disturbance == "nothing"
    found = to_rgb(values)
    assert found.dtype == np.uint8
    tolerance = 1 if depth.startswith("half") else 0
    assert np.abs(found[..., 0][same] - picture[same].astype(int)).max() <= tolerance
    assert (found == found[..., :1]).all()
    three = np.stack([values, values[::-1], values[:, ::-1]], 2)  # blue, green, red
    found = to_rgb(three, "BGR")
    assert np.abs(found[..., 2][same] - picture[same].astype(int)).max() <= tolerance
    assert np.abs(found[..., 0] - picture[:, ::-1].astype(int))[same[:, ::-1]].max() <= tolerance


FILES = [
    ("grey.png", "12 in 16"),
    ("color.png", "12 in 16"),
    ("alpha.png", "12 in 16"),
    ("color.png", "8 in 16"),
    ("grey.tif", "8 in 32"),
    ("grey.tif", "12 in signed"),
    ("color.tif", "12 in signed"),
    ("grey.tif", "float -1..1"),
    ("grey.tif", "double 0..1"),
    ("color.tif", "14 in 16"),
    ("color.tif", "float 0..1"),
    ("color.tif", "float 0..4095"),
    ("alpha.tif", "12 in 16"),
    ("grey.pgm", "12 in 16"),
    ("color.ppm", "12 in 16"),
    ("grey.pfm", "float 0..1"),
    ("color.pfm", "float -1..1"),
]


def write(path, picture, depth):
    """One file of the picture, or of it in three channels (red upright, green and blue mirrored)."""
    values = DEPTHS[depth](picture)
    kind = path.stem.split("_")[0]
    if kind != "grey":
        values = np.stack([values[::-1], values[:, ::-1], values], 2)
    if kind == "alpha":
        values = np.dstack([values, np.full((H, W), values.max() // 3, values.dtype)])
    assert cv2.imwrite(str(path), values)
    return str(path)


@pytest.mark.parametrize(("name", "depth"), FILES)
def test_every_kind_of_file_keeps_all_its_bits(tmp_path, picture, name, depth):
    path = write(tmp_path / name, picture, depth)
    found = read_image(path, "RGB")
    assert (found[..., 0] == picture).all()
    if not name.startswith("grey"):
        assert (found[..., 1] == picture[:, ::-1]).all()
        assert (found[..., 2] == picture[::-1]).all()
    if name.split(".")[1] in ("png", "tif") and name.startswith("grey") and "double" not in depth:
        assert (to_rgb(Image.open(path)) == found).all()


def test_a_range_that_is_given_holds(tmp_path, picture):
    path = write(tmp_path / "grey.png", picture, "8 in 16")
    expected = np.floor(picture.astype(float) * 256 / 1023).astype(np.uint8)
    assert (read_image(path, value_range=(0, 1023))[..., 0] == expected).all()
    assert (to_rgb(picture.astype(np.float32), value_range=(0, 1023))[..., 0] == expected).all()
    # but not for eight bits
    Image.fromarray(picture).save(tmp_path / "eight.png")
    assert (read_image(str(tmp_path / "eight.png"), value_range=(0, 1023))[..., 0] == picture).all()
    assert (to_rgb(picture, value_range=(0, 1023))[..., 0] == picture).all()


def test_all_values_of_a_depth_keep_their_high_bits():
    for bits in (8, 10, 12, 14, 16):
        values = np.arange(2**bits, dtype=np.uint16)
        assert (to_eight_bits(values, (0, 2**bits - 1)) == values >> (bits - 8)).all()


def test_what_has_no_usual_range_is_stretched():
    x = np.linspace(0, 1, H * W).reshape(H, W)
    for low, high, kind in (
        (-1024, 3071, np.int16),
        (-787, 3005, np.int32),
        (123456.5, 123457, np.float32),
        (20000, 24000, np.uint16),
        (273.1, 310.9, np.float32),
        (-1e-3, 1e-3, np.float32),
        (0, 1e7, np.float64),
    ):
        values = (low + (high - low) * x).astype(kind)
        found = to_rgb(values)[..., 0]
        assert found.min() <= 1
        assert found.max() >= 254
        assert (np.diff(found.ravel().astype(int)) >= 0).all()


@pytest.mark.parametrize("whole", [True, False])
def test_whatever_the_values_are_one_sees_them(whole):
    """4000 ranges: the values cover at least 32 of the 256 levels, and at most 5 % of them lie outside."""
    generator = np.random.default_rng(int(whole))
    for _ in range(4000):
        low = generator.choice([0, generator.normal() * 10.0 ** generator.uniform(-3, 5)])
        extent = 10.0 ** generator.uniform(-3, 5)
        if whole:
            low, extent = float(round(low)), float(round(max(extent, 255)))
        extent = low + extent - low  # as it can be told
        bottom, top = likely_range([Extremes(low, low + extent, whole)])
        assert extent / (top - bottom) >= 1 / 8 - 1e-6, (low, extent, bottom, top)
        assert max(0, bottom - low) + max(0, low + extent - top) <= (0.1 + 1e-5) * extent, (low, extent, bottom, top)


def test_small_objects_are_no_outliers():
    values = np.full((400, 400), 200, np.uint16)
    values[100:103, 200:204] = 60000  # 12 of 160000 pixels
    assert likely_range([extremes(values)]) == (0, 65535)
    assert to_rgb(values)[101, 202, 0] == 60000 >> 8


def test_empty_and_dark_pictures_stay_so():
    for values in (
        np.zeros((H, W), np.uint16),
        np.zeros((H, W), np.float32),
        np.full((H, W), np.nan),
        np.full((1, 1), 7, np.int64),
        np.full((H, W), 100, np.uint16) + np.random.default_rng(0).integers(0, 10, (H, W), dtype=np.uint16),
    ):
        assert to_rgb(values).max() <= 110
    assert (to_rgb(np.eye(9, dtype=bool)) == 255 * np.eye(9, dtype=np.uint8)[..., None]).all()


@pytest.fixture
def time_lapse(tmp_path):
    """60 images of 12 bits, of brightness 160 to 4000; every tenth has a hot pixel of 65535."""
    files = []
    for index, peak in enumerate(np.linspace(160, 4000, 60)):
        values = (np.linspace(0, 1, H * W).reshape(H, W) * peak).astype(np.uint16)
        values[0, 0] = 65535 if index % 10 == 0 else 0
        files.append(str(tmp_path / f"{index:02d}.png"))
        cv2.imwrite(files[-1], values)
    return files


def test_a_data_set_has_one_range_and_logs_it_once(time_lapse, caplog):
    with caplog.at_level(logging.INFO):
        assert common_range(time_lapse, "cells") == (0, 4095)
    (record,) = caplog.records
    assert record.getMessage() == (
        "cells: images of more than 8 bits; their values 0 to 4095 become 0 to 255 (see INPUT.VALUE_RANGE)."
    )
    for file in (time_lapse[1], time_lapse[59]):  # relative brightness stays
        values = cv2.imread(file, cv2.IMREAD_UNCHANGED)
        assert (read_image(file, value_range=(0, 4095))[..., 0] == values >> 4).all()


def test_what_does_not_fit_the_range_is_named(tmp_path, time_lapse, caplog, picture):
    assert common_range(time_lapse, "cells", (0, 4095)) == (0, 4095)
    assert not caplog.records
    odd = write(tmp_path / "grey_16.png", picture, "16, high byte")
    assert common_range([*time_lapse[:5], odd], "cells", (0, 4095)) == (0, 4095)
    (record,) = caplog.records
    assert "1 of 6 images do not fit the range of values 0 to 4095" in record.getMessage()
    assert f"the first is {odd} with 512 to 64000" in record.getMessage()
    caplog.clear()
    dark = write(tmp_path / "grey_8.png", picture, "8 in 16")
    assert common_range([odd, dark], "both") == (0, 65535)
    assert f"the first is {dark}" in caplog.text


def test_eight_bits_broken_and_missing_files_decide_nothing(tmp_path, picture, caplog):
    Image.fromarray(picture).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    files = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    assert survey(files)[:3] == (1, 0, ())
    assert common_range(files, "x") == ()
    assert common_range([], "x") == ()
    assert common_range(files, "x", (0, 99)) == (0, 99)
    assert not caplog.records


@pytest.mark.parametrize("value", [(5,), (1, 0), (0, 0), (0, 1, 2), "04", 7, (0, float("nan")), ("a", "b"), {}])
def test_invalid_ranges(value):
    with pytest.raises(ValueError, match="value_range must be two numbers"):
        common_range([], "x", value)


def test_range_of_a_checkpoint():
    assert trained_range(None) == ()
    assert trained_range("MODEL: {}") == ()
    assert trained_range(json.dumps({"INPUT": {"VALUE_RANGE": [0, 4095]}})) == (0, 4095)
