"""Which input files are found, and what is logged about the others."""

import contextlib
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from instseg_d2.apps.inputs import find_inputs, is_video
from instseg_d2.data import read_image
from instseg_d2.errors import DatasetError

IMAGES = (
    "a.jpg",
    "b.JPEG",
    "c.jfif",
    "d.jpe",
    "e.avif",
    "f.Png",
    "g.webp",
    "h.tif",
    "i.bmp",
    "j.jp2",
    "k.ppm",
    "l.gif",
)
VIDEOS = ("a.mp4", "b.ts", "c.3gp", "d.FLV", "e.mts", "f.ogv", "g.MOV", "h.mpg", "i.webm", "j.m2ts")


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def names(files):
    return [Path(file).name for file in files]


@pytest.fixture
def folder(tmp_path):
    return touch(tmp_path / "in", "black.jpg", "broken.jpg", "spots.png", "turned.png", "notes.txt")


def test_files_folders_and_globs_each_once(folder):
    files = find_inputs([str(folder)])
    assert names(files) == ["black.jpg", "broken.jpg", "spots.png", "turned.png"]
    assert find_inputs([str(folder / "turned.png"), str(folder / "*.png")]) == [files[3], files[2]]
    assert find_inputs([str(folder.parent / "**" / "*.jpg")]) == files[:2]
    touch(folder, "a[1].png")
    assert names(find_inputs([str(folder / "a[1].png")])) == ["a[1].png"]


def test_one_path_or_several_as_text_or_path(folder, monkeypatch):
    several = find_inputs([str(folder)])
    for inputs in (str(folder), folder, [folder], (folder / "*.*", str(folder / "spots.png"))):
        assert set(find_inputs(inputs)) >= set(several)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_inputs("~/in") == find_inputs(["~/in/*g"]) == several


def test_every_image_of_a_folder(tmp_path):
    touch(tmp_path / "in", *IMAGES)
    assert names(find_inputs(tmp_path / "in")) == sorted(IMAGES)


@pytest.mark.parametrize("name", VIDEOS)
def test_videos(tmp_path, name):
    assert is_video(name)
    assert names(find_inputs(touch(tmp_path / "in", name) / name)) == [name]
    touch(tmp_path / "in", "a.png")
    with pytest.raises(DatasetError, match=f"{name}: a video must be the only input"):
        find_inputs([tmp_path / "in" / name, tmp_path / "in" / "a.png"])


@pytest.mark.parametrize("name", ["a.jpg", "b.gif", "mp4", "c.mp4.txt", "d.tsx"])
def test_no_videos(name):
    assert not is_video(name)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ((), None),
        ((".DS_Store", "._a.jpg", ".hidden.png"), None),
        (("a.txt",), "1 other file (.txt)"),
        (("b.json", "a.txt", "c.TXT", "none"), "4 other files (.json, .txt, no suffix)"),
        (("a.mp4", "b.TS"), "2 videos (give its path)"),
        (("a.heic", "b.HEIF"), "2 HEIC images (pip install pillow-heif)"),
        (tuple(f"a.x{i}" for i in range(7)), "7 other files (.x0, .x1, .x2, .x3, .x4, ...)"),
        (("sub/",), "1 folder (**/* includes them)"),
        (("sub/", "a.mkv", "a.txt"), "1 folder (**/* includes them), 1 video (give its path), 1 other file (.txt)"),
    ],
)
def test_skipped_entries_are_counted_in_one_line(tmp_path, caplog, others, said):
    touch(tmp_path / "in", "1.png", "2.jpg", *(name for name in others if not name.endswith("/")))
    if "sub/" in others:
        touch(tmp_path / "in" / "sub", "3.png")
    with caplog.at_level(logging.INFO):
        assert names(find_inputs(tmp_path / "in")) == ["1.png", "2.jpg"]
    lines = [record.getMessage() for record in caplog.records]
    assert lines == ([f"{tmp_path / 'in'}: 2 images; skipped: {said}."] if said else [])
    for name in ("1.png", "2.jpg"):
        (tmp_path / "in" / name).unlink()
    with pytest.raises(FileNotFoundError) as error:
        find_inputs(tmp_path / "in")
    assert str(error.value) == f"{tmp_path / 'in'}: no image in this folder{f', but {said}' if said else ''}"


def test_links(tmp_path):
    folder = touch(tmp_path / "in", "a.png")
    (folder / "b.png").symlink_to(folder / "a.png")
    (folder / "c.png").symlink_to(folder / "nowhere.png")
    assert names(find_inputs(folder)) == ["a.png", "b.png"]


def test_all_image_formats_that_pillow_writes_here_are_found_and_read(tmp_path):
    image = Image.fromarray(np.arange(48 * 64 * 3, dtype=np.uint8).reshape(48, 64, 3))
    written = []
    for suffix, kind in Image.registered_extensions().items():
        if kind in Image.SAVE and kind in Image.OPEN and kind not in ("BUFR", "GRIB", "HDF5", "WMF", "EPS", "MPEG"):
            for mode in ("RGB", "P", "1"):
                with contextlib.suppress(OSError, ValueError):
                    image.convert(mode).save(tmp_path / f"a{suffix}", format=kind)
                    break
            written.append(f"a{suffix}")
    assert len(written) > 30
    found = find_inputs(tmp_path)
    assert names(found) == sorted(written)
    for file in found:
        assert read_image(file).ndim == 3
