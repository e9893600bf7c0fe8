"""What the page does, without a browser: the files it may use, detections that are kept, a model's mistakes."""

import json
import os
import pickle
import sys
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from instseg_d2.apps.ui import found as found_module
from instseg_d2.apps.ui.dataset import DataSet
from instseg_d2.apps.ui.files import find_models, inside
from instseg_d2.apps.ui.found import Session, detect_files
from instseg_d2.apps.ui.models import Models
from instseg_d2.apps.video import Video
from instseg_d2.commands import run
from instseg_d2.data import register_coco
from instseg_d2.engine import Predictor
from instseg_d2.errors import CheckpointError, ConfigError
from tests.apps.spots_set import write_spots_set
from tests.bright_spots import CLASS_NAMES, save_checkpoint, spots_clip, spots_config, spots_image


def report(share, text):
    assert 0 <= share <= 1
    assert text


@pytest.fixture
def predictor(tmp_path):
    return Predictor.from_checkpoint(save_checkpoint(tmp_path / "spots.pth", spots_config(), CLASS_NAMES))


@pytest.fixture
def photos(tmp_path):
    Image.fromarray(spots_image()).save(tmp_path / "spots.png")
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "<b>black.png")
    return [str(tmp_path / name) for name in ("spots.png", "broken.jpg", "<b>black.png")]


@pytest.fixture
def spots_set(tmp_path):
    """A registered data set and its folder."""
    path, images = write_spots_set(tmp_path / "set")
    register_coco("page_spots", path, images)
    yield DataSet("page_spots"), tmp_path / "set"
    DatasetCatalog.remove("page_spots")
    MetadataCatalog.pop("page_spots")


def test_models_of_the_chosen_folders_alone(tmp_path, monkeypatch):
    files = [
        "in/a.pth", "in/run/b.safetensors", "in/run/c.onnx", "in/d.xml", "in/d.bin", "in/e.xml", "in/notes.txt",
        "in/bad_batch.pth", "in/.hidden/f.pth", "in/.g.pth", "in/env/pyvenv.cfg", "in/env/lib/h.pth", "two/a.pth",
        "out/secret.pth",
    ]  # fmt: skip
    for age, name in enumerate(files):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    (tmp_path / "in/link.pth").symlink_to(tmp_path / "out/secret.pth")
    (tmp_path / "in/linked").symlink_to(tmp_path / "out", target_is_directory=True)
    (tmp_path / "in/dangling.pth").symlink_to(tmp_path / "absent.pth")
    (tmp_path / "in/again.pth").symlink_to(tmp_path / "in/a.pth")
    one, two = str(tmp_path / "in"), str(tmp_path / "two")
    names = list(find_models([one]))
    assert names[0] in ("a.pth", "again.pth")
    assert names[1:] == ["run/b.safetensors", "run/c.onnx", "d.xml"]
    os.remove(tmp_path / "in/again.pth")
    both = find_models([one, two])
    assert both[f"{one}/a.pth"] == f"{one}/a.pth"  # the same name in two folders
    assert both[f"{two}/a.pth"] == f"{two}/a.pth"
    assert not inside(f"{one}/../out/secret.pth", [one])
    assert not inside(f"{one}x", [one])
    models = Models([one])
    for name in (
        "../out/secret.pth",
        f"{tmp_path}/out/secret.pth",
        "link.pth",
        "linked/secret.pth",
        "a.pth/",
        "",
        None,
    ):
        with pytest.raises(ConfigError), models.use(name):
            pass


def test_the_model_of_the_command_line_comes_first(tmp_path):
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    os.utime(tmp_path / "a.pth", (1e9, 1e9))
    assert list(Models([str(tmp_path)]).paths()) == ["b.pth", "a.pth"]
    assert list(Models([str(tmp_path)], weights=str(tmp_path / "a.pth")).paths()) == ["a.pth", "b.pth"]
    (tmp_path / "empty").mkdir()
    elsewhere = str(tmp_path / "a.pth")
    assert Models([str(tmp_path / "empty")], weights=elsewhere).paths() == {elsewhere: elsewhere}


def test_files_that_run_code_are_not_loaded(tmp_path):
    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    torch.save({"model": {"weight": torch.ones(())}, "cfg": Attack()}, tmp_path / "attack.pth")
    (tmp_path / "attack.pkl").write_bytes(pickle.dumps({"model": {}, "cfg": Attack()}))
    (tmp_path / "model.pt2").write_bytes(b"anything")
    models = Models([str(tmp_path)])
    for name, error, words in (
        ("attack.pth", CheckpointError, "attack"),
        ("attack.pkl", CheckpointError, "attack"),
        ("model.pt2", ConfigError, "--trust"),
    ):
        with pytest.raises(error, match=words), models.use(name):
            pass
    assert not (tmp_path / "attacked").exists()


def test_a_model_is_loaded_once_and_again_when_it_changes(tmp_path):
    path = save_checkpoint(tmp_path / "spots.pth", spots_config(), CLASS_NAMES)
    models = Models([str(tmp_path)])
    with models.use("spots.pth") as first, models.use("spots.pth") as second:
        assert first is second
    save_checkpoint(path, spots_config(), ["red", "blue"])
    os.utime(path, (2e9, 2e9))
    with models.use("spots.pth") as third:
        assert third.class_names == ["red", "blue"]


def test_photos(predictor, photos, tmp_path):
    """Scores are 200/255 for the red spot and 100/255 for the blue one."""
    items, (fault,) = detect_files(predictor, photos, report)
    assert fault.startswith("broken.jpg cannot be read as an image")
    spots, black = items
    assert spots.summary(0.5, []) == "<b>spots.png</b> &nbsp; 1 object: 1 red spot"
    assert spots.summary(0.3, []) == "<b>spots.png</b> &nbsp; 2 objects: 1 red spot, 1 blue spot"
    assert spots.summary(0.3, ["blue spot"]) == "<b>spots.png</b> &nbsp; 1 object: 1 blue spot"
    assert black.summary(0.3, []) == "<b>&lt;b&gt;black.png</b> &nbsp; 0 objects"
    assert spots.rows(0.3, []) == [["red spot", 0.784, 10, 10, 30, 20], ["blue spot", 0.392, 50, 40, 20, 15]]

    session = Session(items, root=str(tmp_path))
    picture, results, fault = session.write(0, 0.5, [])
    assert fault == ""
    assert os.path.basename(picture) == "spots.jpg"
    drawn = cv2.imread(picture)[..., ::-1].astype(int)
    assert np.abs(drawn - spots_image())[12:28, 12:38].max(-1).min() > 30  # drawn
    assert np.abs(drawn - spots_image())[48:53, 54:66].max() < 25  # not drawn
    first = Path(results).read_text()
    again = session.write(0, 0.3, ["blue spot"])
    assert not os.path.exists(picture)
    drawn = cv2.imread(again[0])[..., ::-1].astype(int)
    assert np.abs(drawn - spots_image())[12:20, 12:24].max() < 25
    assert np.abs(drawn - spots_image())[48:53, 54:66].max(-1).min() > 30
    session.clear()
    assert not os.path.exists(again[0])

    out = tmp_path / "out"
    words = ["--weights", str(tmp_path / "spots.pth"), "--input", photos[0], photos[2], "--output", str(out)]
    assert run("predict", words) == 0
    predicted = {x["file_name"]: x for x in json.loads((out / "results.json").read_text())}
    (shown,) = json.loads(first)
    # predict reads the files in order of their names.
    assert {**shown, "image_id": 0} == {**predicted["spots.png"], "image_id": 0}


def test_a_video(predictor, tmp_path, monkeypatch):
    clip = spots_clip(tmp_path / "clip")  # six frames
    Image.fromarray(spots_image()).save(tmp_path / "spots.png")
    (tmp_path / "empty.mp4").write_bytes(b"")
    files = [clip, str(tmp_path / "empty.mp4"), str(tmp_path / "spots.png")]
    (video, photo), (fault,) = detect_files(predictor, files, report)
    assert fault == "empty.mp4: this video has no readable frame"
    assert [r["image_id"] for r in video.results(0.5, [])] == [1, 2, 3, 4, 5, 6]
    assert [r["image_id"] for r in photo.results(0.5, [])] == [7]  # counted on
    assert [row[:2] for row in video.rows(0.5, [])] == [[i, "red spot"] for i in range(1, 7)]
    assert video.summary(0.5, []).endswith("6 frames, 6 objects: 6 red spot")
    written = Video(video.draw(0.5, [], str(tmp_path)))
    frames = list(written)
    assert len(frames) == 6
    assert written.fps == pytest.approx(12)
    for i, frame in enumerate(frames):  # the red spot moves by two pixels a frame
        centre = frame[16:24, 16 + 2 * i : 34 + 2 * i].astype(int)
        assert np.abs(centre - (200, 0, 0)).max(-1).min() > 30
    monkeypatch.setattr(found_module, "MAX_FRAMES", 2)
    assert len(detect_files(predictor, [clip], report)[0][0].frames) == 2


def test_annotations_and_faults(spots_set):
    data, folder = spots_set
    assert data.summary() == "3 images, 6 objects, 2 classes"
    assert data.having(None) == data.having("red spot") == [0, 1, 2]
    picture, caption = data.picture(0)
    assert caption == "0.png: 2 objects"
    assert np.abs(picture.astype(int) - spots_image())[14:26, 14:36].max(-1).min() > 30
    summary, findings = data.faults()
    assert summary == "3 images, 6 objects (at most 2 in an image), 2 categories"
    assert [finding.what for finding in findings] == ["images: same picture under two names"]
    (folder / "images/0.png").write_bytes(b"broken")
    picture, caption = data.picture(0)
    assert "0.png cannot be read" in caption
    assert (picture == 200).all()


@pytest.mark.parametrize("kind", ["parent", "link"])
def test_pictures_outside_the_folders_are_not_shown(spots_set, tmp_path, kind):
    data, folder = spots_set
    secret = tmp_path / "secret.png"
    Image.fromarray(spots_image()).save(secret)
    if kind == "parent":
        data.records[0]["file_name"] = str(folder / "images/../../secret.png")
    else:
        (folder / "images/0.png").unlink()
        (folder / "images/0.png").symlink_to(secret)
    picture, caption = data.picture(0)
    assert f"outside the chosen folders: name its folder with --folder {tmp_path} (and ." in caption
    assert (f"leads to {secret}," in caption) == (kind == "link")
    assert (picture == 200).all()
    allowed = DataSet("page_spots", folders=[str(tmp_path)])
    allowed.records[0].update(data.records[0])
    assert allowed.picture(0)[1].endswith(": 2 objects")


def test_mistakes(spots_set, predictor):
    """At 0.3 both spots of every image are found, with 0.784 (red) and 0.392 (blue)."""
    data, _ = spots_set
    errors, found, faults = data.mistakes(predictor, 3, 0.3, report)
    assert faults == []
    assert [(e.record, e.text, round(e.mistake.cost, 3)) for e in errors] == [
        (2, "missed red spot", 1.0),
        (1, "red spot instead of blue spot", 0.784),
        (2, "false red spot", 0.784),
        (1, "blue spot instead of red spot", 0.392),
    ]
    assert [e.size for e in errors] == [100, 600, 600, 300]
    assert {index: len(instances) for index, instances in found.items()} == {0: 2, 1: 2, 2: 2}
    (crop, caption), *_ = data.crops(errors)
    assert caption == "missed red spot · 1.00"
    assert 50 <= min(crop.shape[:2]) <= max(crop.shape[:2]) <= 96
    annotated, detected = data.side_by_side(errors[0], found[2], CLASS_NAMES)
    assert (annotated[0] != detected[0]).any()
    # At 0.5 the blue spots are not found; their scores make that cheaper.
    errors = data.mistakes(predictor, 1, 0.5, report)[0]
    assert [(e.text, round(e.mistake.cost, 3)) for e in errors] == [("missed blue spot", 0.608)]


def test_mistakes_go_by_the_names_of_classes(spots_set, tmp_path):
    """Another order does not matter; other names do."""
    data, _ = spots_set
    other = Predictor.from_checkpoint(save_checkpoint(tmp_path / "b.pth", spots_config(), CLASS_NAMES[::-1]))
    errors = data.mistakes(other, 2, 0.3, report)[0]
    assert {(e.record, e.mistake.kind) for e in errors} == {(0, "wrong class")}
    for names, words in ((["car", "blue spot"], "only the model has 'car'"), (None, "does not name its classes")):
        checkpoint = save_checkpoint(tmp_path / "c.pth", spots_config(), names)
        with pytest.raises(ConfigError, match=words):
            data.mistakes(Predictor.from_checkpoint(checkpoint), 2, 0.3, report)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--json", "a.json"], "--json needs --images as well"),
        (["--images", "a"], "--images needs --json as well"),
        (["--weights", "absent.pth"], "absent.pth: no such file"),
        (["--model", "absent.onnx"], "absent.onnx: no such file"),
        (["--folder", "absent"], "absent: no such folder"),
        (["--json", "absent.json", "--images", "."], "absent.json: no such file"),
        (["--json", __file__, "--images", "absent"], "absent: no such folder"),
        (["--max-upload-mb", "0"], "must be at least 1"),
    ],
)
def test_wrong_arguments(capsys, words, message):
    assert run("ui", words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_names_that_are_not_utf8(tmp_path):
    """Each model is offered under a name that a page can show, also if two look the same."""
    folder, given = tmp_path / "models", os.fsdecode(os.fsencode(tmp_path) + b"/given\xff.pth")
    folder.mkdir()
    for name in (b"\xff.pth", b"\xfe.pth", b"good.pth"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).touch()
    Path(given).touch()
    paths = Models([str(folder)], weights=given).paths()
    assert sorted(paths) == sorted(
        ["good.pth", f"{folder}/\ufffd.pth", f"{folder}/\ufffd.pth (2)", f"{tmp_path}/given\ufffd.pth"]
    )
    assert set(map(os.fsencode, paths.values())) == {
        *(os.fsencode(folder) + b"/" + name for name in (b"\xff.pth", b"\xfe.pth", b"good.pth")), os.fsencode(given)
    }  # fmt: skip


@pytest.mark.parametrize("fault", ["too wide", "gone"])
def test_results_without_a_picture(predictor, tmp_path, fault):
    path, wide = tmp_path / "uploads/a.png", np.zeros((60, 65_501, 3), np.uint8)
    path.parent.mkdir()
    wide[:, :80] = spots_image()
    Image.fromarray(wide if fault == "too wide" else spots_image()).save(path)
    items, faults = detect_files(predictor, [str(path)], report)
    assert faults == []
    if fault == "gone":
        path.unlink()
    picture, results, why = Session(items, root=str(tmp_path)).write(0, 0.5, [])
    assert picture is None
    assert [r["category_name"] for r in json.loads(Path(results).read_text())] == ["red spot"]
    reason = "no such image file." if fault == "gone" else "a side of a JPEG has at most 65500 pixels"
    assert why == f"a.png: {reason}"


def test_lack_of_memory_leaves_out_one_file(predictor, spots_set, tmp_path, monkeypatch):
    """On a CPU it is a RuntimeError; any other RuntimeError is a fault of the program."""
    Image.fromarray(spots_image()).save(tmp_path / "a.png")
    Image.fromarray(spots_image()[:50]).save(tmp_path / "b.png")
    files, outputs = [str(tmp_path / name) for name in ("b.png", "a.png")], predictor.outputs
    short = [50]

    def limited(inputs, *args):
        if inputs[0]["image"].shape[1] in short:
            torch.empty(1 << 60)
        return outputs(inputs, *args)

    monkeypatch.setattr(predictor, "outputs", limited)
    (item,), (fault,) = detect_files(predictor, files, report)
    assert item.name == "a.png"
    assert fault.startswith("b.png: out of memory (")
    data, _ = spots_set
    short.append(60)
    assert [fault.split(" (")[0] for fault in data.mistakes(predictor, 1, 0.3, report)[2]] == ["0.png: out of memory"]
    monkeypatch.setattr(predictor, "outputs", lambda *args: torch.ones(2) + torch.ones(3))
    with pytest.raises(RuntimeError, match="must match"):
        detect_files(predictor, files, report)


def test_classes_of_one_name(spots_set, predictor, tmp_path):
    data, _ = spots_set
    data.records  # noqa: B018 (reading them sets the names)
    metadata = MetadataCatalog.get("page_spots")
    del metadata.thing_classes
    metadata.thing_classes = predictor.class_names = ["spot", "spot"]
    assert data.having("spot") == [0, 1, 2]
    data.records[0]["annotations"] = data.records[0]["annotations"][1:]  # the blue one
    assert data.having("spot") == [0, 1, 2]
    assert data.label_map(predictor) == [0, 1]
    del metadata.thing_classes
    metadata.thing_classes, predictor.class_names = ["spot", "car", "spot"], ["spot", "spot", "car"]
    with pytest.raises(ConfigError, match="Two classes are named 'spot'"):
        data.label_map(predictor)


def test_crops_show_what_the_model_saw(spots_set, predictor):
    """16-bit images with the range of the model; one image in memory at a time."""
    data, folder = spots_set
    errors = data.mistakes(predictor, 3, 0.3, report)[0]
    grey = np.full((60, 80), 20_000, np.uint16)
    grey[:, 60:] = 10_000
    for number in range(3):
        cv2.imwrite(str(folder / f"images/{number}.png"), grey)
    read, alive = data.image, []

    def image(*args):
        assert all(earlier() is None for earlier in alive)
        pixels = read(*args)
        alive.append(weakref.ref(pixels))
        return pixels

    data.image = image
    crops = data.crops(errors, (0, 51_000))
    assert len(alive) == 2  # of the records 1 and 2
    assert [caption for _, caption in crops] == [f"{e.text} · {e.mistake.cost:.2f}" for e in errors]
    for crop, _ in crops:
        assert crop.base is None
        assert (crop[0, 0] == 100).all()  # 20000 of 51000
    (annotated, _), (found, _) = data.side_by_side(errors[0], predictor(spots_image(), "RGB"), CLASS_NAMES, (0, 51_000))
    assert (annotated[0, 0] == 100).all()
    assert (found[0, 0] == 100).all()


def test_at_the_end_no_model_is_in_use(tmp_path):
    models = Models([str(tmp_path)], weights=save_checkpoint(tmp_path / "a.pth", spots_config(), CLASS_NAMES))
    begun, end = threading.Event(), threading.Event()

    def visit():
        with models.use("a.pth"):
            begun.set()
            end.wait(60)

    visitor = threading.Thread(target=visit)
    visitor.start()
    assert begun.wait(60)
    assert not models.finish(0.01)
    end.set()
    assert models.finish(60)
    visitor.join()
    late = threading.Thread(target=visit, daemon=True)
    begun.clear()
    late.start()
    assert not begun.wait(0.05)


@pytest.mark.parametrize(
    ("host", "address", "warned"),
    [
        ("127.0.0.1", "http://127.0.0.1:7", False),
        ("localhost", "http://localhost:7", False),
        ("0.0.0.0", "http://lab:7", True),
        ("::", "http://lab:7", True),
        ("192.0.2.1", "http://192.0.2.1:7", True),
    ],
)
def test_who_can_use_the_page(monkeypatch, capsys, host, address, warned):
    pytest.importorskip("gradio")
    from instseg_d2.apps.ui import server

    class Interrupted:
        def wait(self):
            raise KeyboardInterrupt

    done = []
    monkeypatch.setattr(server.signal, "signal", lambda *args: None)
    monkeypatch.setattr(server.socket, "gethostname", lambda: "lab")
    monkeypatch.setattr(server.threading, "Event", Interrupted)
    monkeypatch.setattr(server, "start", lambda page, host, *args: f"http://{f'[{host}]' if ':' in host else host}:7")
    page = SimpleNamespace(close=lambda verbose: done.append("closed"))
    server.serve(page, SimpleNamespace(finish=lambda seconds: done.append("finished")), host, 7, 1)
    first, *rest, last = capsys.readouterr().out.splitlines()
    assert first == f"Open {address} in a browser. Ctrl-C ends the program."
    assert rest == ["Anyone on the network can use this page."] * warned
    assert last == "Stopped."
    assert done == ["closed", "finished"]


def test_without_gradio(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("gradio", "instseg_d2.apps.ui"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "")
    assert run("ui", []) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: `instseg ui` needs Gradio: pip install gradio (Python 3.10 or newer)."
