"""instseg_d2.runtime: exported models without PyTorch, against Pillow, Detectron2 and the predictor."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import paste_masks_in_image
from PIL import Image

from instseg_d2.errors import ConfigError
from instseg_d2.export import ExportedPredictor, export_verified
from instseg_d2.export.runtime import network_inputs
from instseg_d2.modeling.postprocessing import resize_masks
from instseg_d2.runtime import Model, mask_patch, sessions
from instseg_d2.runtime.model import detections, fitting_size, resize
from tests.export.test_methods import SIZE, decided_predictor

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("size", [(30, 40), (61, 80), (97, 33), (200, 301), (60, 81)])
def test_resizing_is_pillows(size):
    image = np.random.default_rng(0).integers(0, 256, (60, 81, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.BILINEAR))
    assert np.array_equal(resize(image, size), expected)


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (500, 500), (33, 1000), (1000, 33), (7, 5), (375, 500)])
@pytest.mark.parametrize("limits", [(800, 1333), (512, 512), (64, 100)])
def test_sizes_are_detectron2s(size, limits):
    metadata = {"size": None, "shortest_side": limits[0], "longest_side": limits[1]}
    assert fitting_size(size, metadata) == ResizeShortestEdge.get_output_shape(*size, *limits)


def test_sizes_that_fit_into_a_canvas():
    limits = {"shortest_side": 72, "longest_side": 128}
    assert fitting_size((90, 70), {"size": [72, 96], **limits}) == (72, 56)
    assert fitting_size((90, 70), {"size": [72, 96], **limits, "fills_canvas": True}) == (72, 96)
    assert fitting_size((30, 40), {"size": [72, 96], "shortest_side": 0, "longest_side": 128}) == (30, 40)


def pasted(patch, size):
    y, x, part = patch
    result = np.zeros(size, dtype=bool)
    result[y : y + part.shape[0], x : x + part.shape[1]] = part
    return result


def test_crops_become_detectron2s_masks():
    generator = torch.Generator().manual_seed(0)
    size, count = (90, 120), 60
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([120.0, 90.0])
    boxes = torch.cat([corner, corner + 0.5 + 60 * torch.rand(count, 2, generator=generator) ** 2], 1)
    boxes[:, 0::2].clamp_(max=size[1])
    boxes[:, 1::2].clamp_(max=size[0])
    crops = torch.rand(count, 14, 14, generator=generator)
    expected = paste_masks_in_image(crops, boxes, size, threshold=0.5).numpy()
    information = {"form": "crops", "threshold": 0.5}
    for crop, box, mask in zip(crops.numpy(), boxes.numpy(), expected):
        assert np.array_equal(pasted(mask_patch(crop, box, None, (1, 1), size, information), size), mask)


@pytest.mark.parametrize("sparse", [False, True])
def test_maps_become_the_models_masks(sparse):
    maps = torch.rand(1, 8, 12, 16, generator=torch.Generator().manual_seed(0))
    if sparse:
        maps[:, :, 5:] = 0
        maps[:, :, :, :9] = 0
    expected = resize_masks(maps, (96, 128), (90, 120), (180, 241))[0] > 0.5
    information = {"form": "canvas", "threshold": 0.5, "size_divisibility": 32}
    for one, mask in zip(maps[0].numpy(), expected.numpy()):
        patch = mask_patch(one, None, (95, 125), (90, 120), (180, 241), information)
        assert np.array_equal(pasted(patch, (180, 241)), mask)
        assert not sparse or patch[2].size < mask.size / 3


needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime",
)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A file with a photo, and what the predictor of exported models finds in it."""
    folder = tmp_path_factory.mktemp("runtime")
    coarse = np.random.default_rng(3).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    photo = np.asarray(Image.fromarray(coarse).resize((110, 90), Image.BICUBIC))
    Image.fromarray(photo).save(folder / "photo.png")
    path = str(folder / "model.onnx")
    predictor = decided_predictor("EmbedMask")
    parity = export_verified(predictor, path, "onnx", [str(folder / "photo.png")], size=SIZE, masks="canvas")
    assert parity.failure == ""
    assert parity.masks > 25
    return path, photo, ExportedPredictor(path)(photo, "RGB")


@needs_onnx
def test_the_same_as_the_predictor(exported):
    path, photo, expected = exported
    model = Model(path, threads=1)
    found = model(photo)
    assert len(found) == len(expected) > 10
    np.testing.assert_allclose(found.scores, expected.scores.numpy(), atol=1e-3)
    assert (found.masks() == expected.pred_masks.numpy()).mean() > 0.999
    assert np.array_equal(found.mask(3), found.masks()[3])
    best = model(photo, score_threshold=float(found.scores[4]))
    assert len(best) >= 5
    assert best.scores.min() >= found.scores[4]
    with pytest.raises(ValueError, match=r"an image is an array \(H, W, 3\) of uint8"):
        model(photo[..., 0])


PARALLEL = """
INSTSEG_COMMAND = True  # leave PyTorch out
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
sys.path.insert(0, {root!r})
from instseg_d2.runtime import sessions
inputs = [dict(np.load(f"{folder}/{{index}}.npz")) for index in range(6)]
session = sessions.{kind}({path!r}, 2, parallel=2)
with ThreadPoolExecutor(2) as threads:
    together = list(threads.map(session, inputs))
assert len({{found["scores"].tobytes() for found in together}}) == 6
alone = sessions.{kind}({path!r}, 1)
for found, x in zip(together, inputs):
    np.testing.assert_allclose(found["scores"], alone(x)["scores"], atol=1e-5)
print("equal")
"""


@needs_onnx
@pytest.mark.parametrize("kind", ["OnnxSession", "OpenVinoSession"])
def test_threads_that_call_at_the_same_time_get_their_own_results(exported, kind, tmp_path):
    """In a process of its own, whose end is looked at as well. OpenVINO reads ONNX, too."""
    if kind == "OpenVinoSession":
        pytest.importorskip("openvino")
    path, photo, _ = exported
    metadata = Model(path).metadata
    for index in range(6):
        record = ExportedPredictor.of(None, metadata).preprocess(np.roll(photo, 10 * index, 1), "RGB")
        np.savez(tmp_path / f"{index}.npz", **network_inputs([record], metadata))
    code = PARALLEL.format(root=str(ROOT), folder=tmp_path, kind=kind, path=path)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (run.returncode, run.stdout) == (0, "equal\n"), run.stderr


@needs_onnx
def test_without_pytorch(exported, tmp_path):
    """In an environment of NumPy, OpenCV and ONNX Runtime alone."""
    path, _, expected = exported
    for name in ("numpy", "cv2", "onnxruntime"):
        (package,) = map(Path, importlib.util.find_spec(name).submodule_search_locations)
        libraries = [*package.parent.glob(f"{name}*libs"), *package.parent.glob("opencv*libs")]
        for found in (package, *libraries):
            if not (tmp_path / found.name).exists():
                (tmp_path / found.name).symlink_to(found)
    code = f"""
import json, sys
sys.path[:0] = [{str(ROOT)!r}, {str(tmp_path)!r}]
from instseg_d2.runtime import Model, read_image
found = Model({path!r})(read_image({str(Path(path).parent / "photo.png")!r}))
loaded = sorted({{"torch", "detectron2"}} & set(sys.modules))
print(json.dumps([found.scores.tolist(), int(found.masks().sum()), loaded]))
"""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    run = subprocess.run(
        [sys.executable, "-S", "-I", "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    scores, pixels, loaded = json.loads(run.stdout.splitlines()[-1])
    assert loaded == []
    np.testing.assert_allclose(scores, expected.scores.numpy(), atol=1e-3)
    assert pixels == pytest.approx(int(expected.pred_masks.sum()), rel=0.01)


def test_errors(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    for name, kind, words in (
        ("a.pt2", ConfigError, r"a\.pt2: an exported model is a file of \.onnx or \.xml"),
        ("b.onnx", FileNotFoundError, "there is no such file"),
        ("a.onnx", ConfigError, "a.onnx is damaged, or was not exported here|need the package onnxruntime"),
    ):
        with pytest.raises(kind, match=words):
            Model(str(tmp_path / name))


class Refuses:
    runtime = "TheRuntime"
    text = json.dumps({"version": 3})

    def __init__(self, *_):
        pass

    def __call__(self, inputs):
        raise MemoryError("no memory\nat 0x1")


def test_a_newer_file_and_a_size_that_the_runtime_refuses(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"any")
    with pytest.raises(ConfigError, match=r"a\.onnx was exported by a newer instseg_d2: update this one"):
        sessions.open_session(str(tmp_path / "a.onnx"), kinds={".onnx": Refuses})
    with pytest.raises(ConfigError, match=r"TheRuntime cannot run this file on 2 images of 5 x 7 pixels: no memory$"):
        sessions.run(Refuses(), {"images": np.zeros((2, 3, 5, 7))})


def test_an_empty_mask_is_no_detection_where_masks_are_crops():
    """As in PyTorch: one hot cell of 21 x 21 in a window of 3 pixels covers the centre of no pixel."""
    masks = {"form": "crops", "threshold": 0.5, "tight_boxes": True}
    metadata = {"size": [20, 20], "max_detections": 5, "masks": masks}
    crops = np.zeros((2, 21, 21), np.float32)
    crops[0, 0, 0] = 1
    crops[1] = 1
    windows = np.array([[2, 2, 5, 5], [4, 5, 10, 12]], np.float32)
    arrays = {"boxes": windows, "windows": windows, "masks": crops, "labels": np.array([0, 1])}
    found = detections({**arrays, "scores": np.array([0.9, 0.8], np.float32)}, metadata, (20, 20), (20, 20), 0.0)
    assert found.labels.tolist() == [1]
    assert found.boxes.tolist() == [[4, 5, 10, 12]]
    assert found.mask(0).sum() == 6 * 7
