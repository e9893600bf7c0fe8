"""Cameras and addresses, with a server on this machine; frames of a video left out."""

import contextlib
import http.server
import json
import logging
import threading

import cv2
import numpy as np
import pytest

from instseg_d2.apps import video
from instseg_d2.apps.inputs import find_inputs, is_live
from instseg_d2.apps.video import Video, source_name
from instseg_d2.commands import run
from instseg_d2.errors import DatasetError, ImageError
from tests.bright_spots import CLASS_NAMES, save_checkpoint, spots_clip, spots_config, spots_image

FRAMES = 5  # before the server breaks off


@contextlib.contextmanager
def stream(connections, silent=False):
    """The address of a Motion JPEG stream: so many connections of 5 frames, whose grey is 10 * number of the frame."""
    served = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            served.append(self.path)
            if silent:
                closing.wait(20)
                return
            if len(served) > connections:
                self.send_error(503)
                return
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            for number in range(FRAMES):
                grey = 10 * (number + FRAMES * (len(served) - 1))
                data = cv2.imencode(".jpg", np.full((48, 64, 3), grey, np.uint8))[1].tobytes()
                head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")

        def log_message(self, *args):
            pass

    closing = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://user:secret@127.0.0.1:{server.server_port}/live/door.mjpg?key=1", served
    finally:
        closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(video, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(video, "TIMEOUT", 1)


@pytest.mark.parametrize(("connections", "steady", "opened"), [(2, 100, 4), (9, 100, 4), (5, FRAMES, 8)])
def test_a_stream_that_breaks_off_is_opened_again(impatient, monkeypatch, caplog, connections, steady, opened):
    """Three times, and again three times after a steady connection."""
    monkeypatch.setattr(video, "STEADY", steady)
    with stream(connections) as (address, served), caplog.at_level(logging.WARNING):
        source = Video(address)
        found = [round(frame.mean() / 10) for frame in source]
    assert found == list(range(FRAMES * min(connections, opened)))
    assert (source.read, source.broken, len(served)) == (len(found), 0, opened)
    again, end = caplog.messages[:-1], caplog.messages[-1]
    assert again[0] == "127.0.0.1/live/door.mjpg broke off after frame 5: trying again in 0 s."
    assert len(again) == opened - 1
    assert end == "127.0.0.1/live/door.mjpg broke off and does not come back: the video ends here."


def test_silence_ends(impatient):
    with (
        stream(1, silent=True) as (address, _),
        pytest.raises(ImageError, match=r"127\.0\.0\.1/live/door\.mjpg: no pic"),
    ):
        Video(address)


def test_a_stream_is_predicted(impatient, tmp_path):
    """Up to a number of frames, and without its password in any file."""
    weights = save_checkpoint(tmp_path / "spots.pth", spots_config(), CLASS_NAMES)
    out = tmp_path / "out"
    with stream(9) as (address, served):
        arguments = ["--weights", weights, "--input", address, "--output", str(out), "--max-images", "7"]
        assert run("predict", [*arguments, "--score-threshold", "0.2", "--every", "2"]) == 0
        assert len(served) == 3
    results = json.loads((out / "results.json").read_text())
    # Frames from the seventh on, grey 60, are one spot of each class; every second one of the first 13.
    assert [x["image_id"] for x in results] == [i for i in (9, 11, 13) for _ in CLASS_NAMES]
    assert {x["file_name"] for x in results} == {"127.0.0.1/live/door.mjpg"}
    assert not any(b"secret" in path.read_bytes() for path in out.iterdir())
    assert any(path.name.startswith("127_0_0_1_live_door_mjpg.") for path in out.iterdir())


def test_one_sentence_if_there_is_no_camera(tmp_path, capfd):
    weights = save_checkpoint(tmp_path / "spots.pth", spots_config(), CLASS_NAMES)
    arguments = ["--weights", weights, "--output", str(tmp_path / "out"), "--input"]
    assert run("predict", [*arguments, "97"]) == 2
    assert capfd.readouterr().err == "error: camera 97: no picture comes from there; check it with another program\n"
    with stream(0) as (address, _):
        assert run("predict", [*arguments, address]) == 2
        assert capfd.readouterr().err.startswith("error: 127.0.0.1/live/door.mjpg: no picture comes from there;")
        assert run("predict", [*arguments, address, "--polygons"]) == 2
    error = capfd.readouterr().err
    assert error == "error: 127.0.0.1/live/door.mjpg is a camera; --polygons works only on images\n"
    assert run("predict", [*arguments, "0", str(tmp_path)]) == 2
    assert capfd.readouterr().err == "error: 0: a camera or address must be the only input\n"


def test_what_is_a_camera(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert all(map(is_live, ("0", "12", "rtsp://x/y", "http://x", "HTTPS://x")))
    assert not any(map(is_live, ("a", "0.png", "", "-1", "²", "ftp://x")))
    (tmp_path / "0").write_bytes(b"")
    assert not is_live("0")
    assert find_inputs(["0"], live=True) == ["0"]
    assert find_inputs("1", live=True) == ["1"]
    with pytest.raises(FileNotFoundError):
        find_inputs("1")
    with pytest.raises(DatasetError, match="must be the only input"):
        find_inputs(["0", "1"], live=True)
    assert source_name("rtsp://a:b@cam.local:554/s?c=d") == "cam.local/s"
    assert source_name("1") == "camera 1"
    assert source_name("folder/0.mp4") == "0.mp4"


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5, 6]), (2, [1, 3, 5]), (4, [1, 5]), (9, [1])])
def test_every_nth_frame(tmp_path, every, expected):
    weights = save_checkpoint(tmp_path / "spots.pth", spots_config(), CLASS_NAMES)
    clip, out = spots_clip(tmp_path / "clip", 6), tmp_path / "out"
    arguments = ["--weights", weights, "--input", clip, "--output", str(out), "--score-threshold", "0.2"]
    assert run("predict", [*arguments, "--every", str(every)]) == 0
    results = json.loads((out / "results.json").read_text())
    assert [x["image_id"] for x in results] == [i for i in expected for _ in CLASS_NAMES]
    (written,) = out.glob("clip.*")
    frames = list(Video(str(written)))
    assert len(frames) == len(expected)
    assert Video(str(written)).fps == pytest.approx(12 / every, rel=0.05)
    moved = (np.roll(spots_image(), 2 * every * i, axis=1)[..., 0] > 100 for i in range(len(expected)))
    for frame, spot in zip(frames, moved):
        assert frame[..., :3].max(2)[spot].mean() > 60 + frame.max(2)[~spot].mean()


def test_wrong_arguments(tmp_path, capsys):
    weights = save_checkpoint(tmp_path / "spots.pth", spots_config(), CLASS_NAMES)
    cv2.imwrite(str(tmp_path / "a.png"), spots_image())
    arguments = ["--weights", weights, "--output", str(tmp_path / "out"), "--input", str(tmp_path / "a.png")]
    for extra, message in (
        (["--every", "0"], "--every must be at least 1; got 0"),
        (["--every", "2"], f"{tmp_path}/a.png is an image; --every works only on videos and cameras"),
        (["--track"], f"{tmp_path}/a.png is an image; --track works only on videos and cameras"),
    ):
        assert run("predict", arguments + extra) == 2
        assert capsys.readouterr().err == f"error: {message}\n"
