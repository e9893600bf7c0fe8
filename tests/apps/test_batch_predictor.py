"""The predictor of batches of columns: the predictor's results, rows with errors, and copies without a model."""

import contextlib
import functools
import json
import os
import pickle
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from instseg_d2.apps import BatchPredictor
from instseg_d2.apps.batch_predictor import COLUMNS
from instseg_d2.errors import CheckpointError, ConfigError
from instseg_d2.inference.predictor import Predictor
from instseg_d2.modeling.postprocessing import RunLengthMasks
from tests.bright_spots import save_checkpoint, spots_config, spots_image

NAMES = ["a.png", "b.png", "c.png"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("batches")
    for number, name in enumerate(NAMES):
        Image.fromarray(np.roll(spots_image(), 3 * number, 0)[: 60 - number]).save(folder / name)
    save_checkpoint(folder / "spots.pth", spots_config(), ["red", "blue"])
    return folder


@pytest.fixture
def predictor(folder):
    return BatchPredictor(folder / "spots.pth", score_threshold=0.1, batch_size=2)


def check(found, folder, rows=range(3)):
    """Compare the rows with what the predictor finds."""
    plain = Predictor.from_checkpoint(str(folder / "spots.pth"))
    for row in rows:
        expected = plain(str(folder / NAMES[row]))
        assert (found["height"][row], found["width"][row]) == expected.image_size
        assert found["boxes"][row] == expected.pred_boxes.tensor.tolist()
        assert found["scores"][row] == expected.scores.tolist()
        assert found["labels"][row] == expected.pred_classes.tolist()
        codes = [{"size": expected.image_size, "counts": counts} for counts in found["masks"][row]]
        assert (RunLengthMasks(codes, expected.image_size).decode() == expected.pred_masks).all()
        assert found["error"][row] is None


def column(values):
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def test_paths_contents_and_arrays_give_the_same(folder, predictor):
    paths = [str(folder / name) for name in NAMES]
    contents = [(folder / name).read_bytes() for name in NAMES]
    images = column([np.asarray(Image.open(path)) for path in paths])
    found = predictor({"path": np.array(paths), "id": np.arange(3)})
    check(found, folder)
    assert found["path"].tolist() == paths
    assert found["id"].tolist() == [0, 1, 2]
    assert set(found) == {"path", "id", *COLUMNS}
    for batch in (np.array(paths), column(contents), images, {"bytes": column(contents)}, {"image": images}):
        found = predictor(batch)
        check(found, folder)
        assert set(found) - {"path"} == set(COLUMNS)
    check(predictor({"image": np.asarray(Image.open(paths[0]))[None]}), folder, rows=[0])
    # The content counts, if there are both.
    found = predictor({"path": ["x", "y", "z"], "bytes": contents})
    check(found, folder)
    assert found["path"] == ["x", "y", "z"]


def test_one_text_for_each_image(folder, predictor):
    paths = np.array([str(folder / name) for name in (*NAMES, "absent.png")])
    rows = [json.loads(text) for text in predictor.json(paths)]
    assert set(rows[0]) == set(COLUMNS)
    assert "absent.png" in rows[3]["error"]
    check({name: [row[name] for row in rows] for name in COLUMNS}, folder)


def test_a_broken_image_is_a_row_with_its_error(folder, predictor):
    (folder / "broken.jpg").write_bytes(b"no image")
    paths = [str(folder / name) for name in ("a.png", "broken.jpg", "absent.png", "c.png")]
    found = predictor(np.array(paths))
    assert [bool(error) for error in found["error"]] == [False, True, True, False]
    assert "broken.jpg cannot be read as an image" in found["error"][1]
    assert "absent.png: no such image file" in found["error"][2]
    for name, empty in (("height", 0), ("boxes", []), ("scores", []), ("labels", []), ("masks", [])):
        assert found[name][1] == empty
    check({name: [values[0], None, values[3]] for name, values in found.items()}, folder, rows=[0, 2])
    found = predictor({"bytes": [b"", (folder / "b.png").read_bytes(), b"no image"]})
    assert found["error"][0] == "the content cannot be read as an image (it is empty)."
    check({name: [None, values[1]] for name, values in found.items()}, folder, rows=[1])
    found = predictor({"bytes": [None, (folder / "b.png").read_bytes()]})
    assert found["error"].tolist() == ["there is no image in this row.", None]
    found = predictor({"path": ["http://127.0.0.1:9/a b.png", os.fsdecode(b"\xff.png"), "nonsense://x/a.png", None]})
    assert "http://127.0.0.1:9/a b.png cannot be read: InvalidURL(" in found["error"][0]
    assert all(found["error"])
    nothing = predictor({"path": []})
    assert all(len(nothing[name]) == 0 for name in COLUMNS)


def test_a_pickled_copy_loads_its_own_model(folder, predictor):
    predictor(np.array([str(folder / "a.png")]))
    assert predictor._predictor is not None
    data = pickle.dumps(predictor)
    assert len(data) < 1000
    copy = pickle.loads(data)
    assert copy._predictor is None
    check(copy(np.array([str(folder / name) for name in NAMES])), folder)


@contextlib.contextmanager
def served(folder):
    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_addresses(folder, predictor):
    with served(folder) as address:
        found = predictor({"path": [f"{address}/{name}" for name in (*NAMES, "absent.png")]})
    check(found, folder)
    assert "404" in found["error"][3]


def test_what_is_refused(folder, predictor):
    with pytest.raises(ValueError, match=r"one of the columns bytes, image, path; got a"):
        predictor({"a": [1]})
    with pytest.raises(CheckpointError, match="no such weight file"):
        BatchPredictor(folder / "absent.pth")(np.array(["a.png"]))
    with pytest.raises(ConfigError, match="at least 1; got 0"):
        BatchPredictor("model.onnx", batch_size=0)
    with pytest.raises(ConfigError, match="between 0 and 1; got 50"):
        BatchPredictor("model.onnx", score_threshold=50)
    with pytest.raises(ConfigError, match="takes no config"):
        BatchPredictor("model.onnx", opts=("MODEL.DEVICE", "cpu"))(np.array(["a.png"]))
