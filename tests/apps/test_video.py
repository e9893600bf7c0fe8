"""Videos: intact, broken anywhere, with wrong headers; frames are identified by their grey value."""

import json
import logging
import os
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest

from instseg_d2.apps.predict import run_demo
from instseg_d2.apps.video import MAX_BROKEN, Video, write_video
from instseg_d2.errors import ImageError
from instseg_d2.inference.predictor import Predictor
from tests.bright_spots import save_checkpoint, spots_clip, spots_config, spots_image

COUNT = 20


def test_odd_sizes_and_unreadable_videos(tmp_path):
    frames = list(Video(spots_clip(tmp_path / "odd", 2, (81, 61))))
    assert len(frames) == 2
    assert abs(frames[0].shape[0] - 61) <= 1
    (tmp_path / "no.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"no\.mp4: this video has no readable frame"):
        Video(str(tmp_path / "no.mp4"))
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(str(tmp_path / "none"), [], 10)


def test_first_codec_that_works_is_taken(tmp_path):
    frames = [spots_image()] * 2
    written = write_video(tmp_path / "clip", frames, 10, (("????", ".mp4"), ("MJPG", ".avi")))
    assert written.endswith("clip.avi")
    assert os.listdir(tmp_path) == ["clip.avi"]
    with pytest.raises(ValueError, match="cannot write videos of 80 x 60"):
        write_video(tmp_path / "other", frames, 10, (("????", ".mp4"),))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A Motion JPEG file whose frame i has the grey 10 * i."""
    path = str(tmp_path_factory.mktemp("video") / "sound.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for index in range(COUNT):
        writer.write(np.full((48, 64, 3), 10 * index, np.uint8))
    writer.release()
    return Path(path).read_bytes()


def with_broken(data, broken):
    """The file with frames of zeros."""
    data, place = bytearray(data), data.index(b"movi")
    for index in range(COUNT):
        place = data.index(b"00dc", place)
        (size,) = struct.unpack("<I", data[place + 4 : place + 8])
        if index in broken:
            data[place + 8 : place + 8 + size] = bytes(size)
        place += 8 + size
    return bytes(data)


def with_count(data, count):
    """The file with this frame count in both headers."""
    data = bytearray(data)
    data[48:52] = struct.pack("<I", count)
    stream = data.index(b"strh") + 8
    data[stream + 32 : stream + 36] = struct.pack("<I", count)
    return bytes(data)


def seen(path):
    video = Video(str(path))
    return [None if frame is None else round(frame.mean() / 10) for frame in video], video


BROKEN = [(), (8,), (3, 9, 15), (7, 8, 9), (0,), (0, 1, 2), (19,), (17, 18, 19), (0, 10, 19), tuple(range(1, 20))]
BROKEN += [tuple(range(19)), tuple(range(4, 18))]


@pytest.mark.parametrize("broken", BROKEN)
def test_broken_frames_are_skipped_and_counted(sound, tmp_path, broken):
    (tmp_path / "a.avi").write_bytes(with_broken(sound, broken))
    frames, video = seen(tmp_path / "a.avi")
    expected = [None if index in broken else index for index in range(COUNT)]
    while expected[-1] is None:
        expected.pop()
    assert frames == expected
    assert (video.count, video.read, video.broken) == (COUNT, COUNT - len(broken), len(broken))


@pytest.mark.parametrize("broken", [(), (8,), (0, 12), (19,)])
@pytest.mark.parametrize("count", [0, 1, 5, 19, 21, 40, 10**6, 2**31 - 1])
def test_headers_that_are_wrong(sound, tmp_path, count, broken):
    (tmp_path / "a.avi").write_bytes(with_count(with_broken(sound, broken), count))
    frames, video = seen(tmp_path / "a.avi")
    expected = [None if index in broken else index for index in range(COUNT)]
    assert frames == (expected[:-1] if 19 in broken else expected)
    assert video.read == COUNT - len(broken)
    if video.count > COUNT:
        assert video.broken == video.count - video.read


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_file_that_was_cut(sound, tmp_path, share):
    begin = sound.index(b"movi")
    (tmp_path / "a.avi").write_bytes(sound[: begin + int((len(sound) - begin) * share)])
    frames, video = seen(tmp_path / "a.avi")
    assert frames == list(range(len(frames)))
    assert 3 < len(frames) < COUNT
    assert video.broken == COUNT - len(frames)


def test_files_without_any_frame(sound, tmp_path):
    movie = sound.index(b"movi")
    for name, data in (
        ("empty.avi", b""),
        ("text.mp4", b"no video" * 100),
        ("header.avi", sound[: movie + 4]),
        ("all.avi", with_broken(sound, range(COUNT))),
        ("all.avi", with_count(with_broken(sound, range(COUNT)), 10 * MAX_BROKEN)),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=f"{name}: this video has no readable frame"):
            Video(str(tmp_path / name))


@pytest.fixture
def predictor(tmp_path):
    return Predictor.from_checkpoint(save_checkpoint(tmp_path / "spots.pth", spots_config(), ["red", "blue"]))


@pytest.mark.parametrize(("broken", "shown"), [((2, 3), [0, 1, 1, 1, 4]), ((0, 1), [2, 2, 2, 3, 4])])
def test_the_time_line_is_kept(sound, tmp_path, predictor, caplog, broken, shown):
    (tmp_path / "a.avi").write_bytes(with_broken(sound, broken))
    with caplog.at_level(logging.INFO):
        assert run_demo(predictor, tmp_path / "a.avi", tmp_path / "out", score_threshold=0)
    frames, video = seen(next((tmp_path / "out").glob("a.*")))
    assert len(frames) == COUNT
    assert video.fps == pytest.approx(10)
    assert "a.avi: 2 of 20 frames could not be read" in caplog.text
    assert "18 done" in caplog.text
    # Drawn on or not, the grey of the background stays.
    backgrounds = [
        round(np.median(frame[-6:, -20:]) / 10) for frame in Video(str(next((tmp_path / "out").glob("a.*"))))
    ]
    assert backgrounds[:5] == shown


def test_results_name_the_place_in_the_video(tmp_path, predictor):
    path = str(tmp_path / "a.avi")
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*"MJPG"), 10, (80, 60))
    for _ in range(COUNT):
        writer.write(spots_image()[..., ::-1])
    writer.release()
    Path(path).write_bytes(with_broken(Path(path).read_bytes(), (0, 5)))
    run_demo(predictor, path, tmp_path / "out", score_threshold=0.1)
    text = (tmp_path / "out" / "results.json").read_text()
    assert {result["image_id"] for result in json.loads(text)} == set(range(1, COUNT + 1)) - {1, 6}


@pytest.mark.skipif(os.name == "nt", reason="its names are Unicode")
def test_names_that_are_not_utf8(sound, tmp_path, predictor):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/in\xff"))
    folder.mkdir()
    path = os.fsdecode(os.fsencode(folder) + b"/a\xe9.avi")
    Path(path).write_bytes(sound)
    assert seen(path)[0] == list(range(COUNT))
    out = os.fsdecode(os.fsencode(tmp_path) + b"/out\xff")
    assert run_demo(predictor, path, out)
    (written,) = (name for name in os.listdir(out) if name.startswith("a"))
    assert os.path.splitext(written)[0] == "a\ufffd"
    assert len(seen(os.path.join(out, written))[0]) == COUNT


def test_frames_of_another_size_are_kept(tmp_path):
    sizes = [(48, 64), (30, 40), (48, 64), (96, 128)]
    frames = (np.full((*size, 3), 60 * index, np.uint8) for index, size in enumerate(sizes))
    frames, _ = seen(write_video(tmp_path / "a", frames, 10))
    assert frames == [0, 6, 12, 18]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_what_was_written_before_an_error_is_kept(tmp_path, error):
    def frames():
        yield from [np.zeros((48, 64, 3), np.uint8)] * 4
        raise error("stop")

    if error is KeyboardInterrupt:
        write_video(tmp_path / "a", frames(), 10)
    else:
        with pytest.raises(RuntimeError, match="stop"):
            write_video(tmp_path / "a", frames(), 10)
    (path,) = tmp_path.iterdir()
    assert len(list(Video(str(path)))) == 4
