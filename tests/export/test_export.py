"""Exported SparseInst models against PyTorch's predictor, the gate that compares them, the scripts, the errors."""

import copy
import importlib.util
import io
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_model
from detectron2.structures import Boxes, Instances
from PIL import Image

from instseg_d2.commands import run
from instseg_d2.engine import Predictor
from instseg_d2.errors import ConfigError
from instseg_d2.export import ExportedPredictor, Parity, ParityError, compare, export, export_verified
from instseg_d2.layers import adaptive_average, make_pools_exportable
from tests.scripts import restore_logging  # noqa: F401 (a fixture)
from tests.tiny import tiny_config

NAMES = ["disk", "square", "ring"]
SIZES = ((60, 80), (90, 70), (75, 75))  # of the images

needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime",
)
FORMATS = [pytest.param("onnx", marks=needs_onnx), "pt2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of three sizes."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for index, (height, width) in enumerate(SIZES):
        coarse = generator.integers(0, 256, (6, 7, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((width, height), Image.BICUBIC).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def files(folder):
    return sorted(str(file) for file in folder.iterdir())


class ThreeMaps(Backbone):
    """A ResNet's kinds of layers, few of them: large graphs take long to trace."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 7, 2, 3), torch.nn.ReLU(), torch.nn.MaxPool2d(3, 2, 1))
        self.steps = torch.nn.ModuleList(torch.nn.Conv2d(c, 2 * c, 3, 2, 1) for c in (8, 16, 32))
        self.shortcuts = torch.nn.ModuleList(torch.nn.Conv2d(c, 2 * c, 1, 2) for c in (8, 16, 32))
        self._out_features = ["res3", "res4", "res5"]
        self._out_feature_strides = {"res3": 8, "res4": 16, "res5": 32}
        self._out_feature_channels = {"res3": 16, "res4": 32, "res5": 64}

    def forward(self, x):
        maps, x = [], self.stem(x)
        for step, shortcut in zip(self.steps, self.shortcuts):
            x = F.relu(step(x) + shortcut(x))
            maps.append(x)
        return dict(zip(self._out_features, maps))


@BACKBONE_REGISTRY.register()
def build_three_maps_backbone(cfg, input_shape):
    return ThreeMaps()


def save_checkpoint(path, decoder, class_bias=0.0, backbone="build_three_maps_backbone"):
    """A SparseInst with random weights that finds objects of many shapes."""
    opts = ["MODEL.SPARSE_INST.DECODER.NAME", decoder]
    opts += ["MODEL.BACKBONE.NAME", backbone, "INPUT.MIN_SIZE_TEST", 72, "INPUT.MAX_SIZE_TEST", 100]
    cfg = tiny_config("SparseInst", *opts, num_classes=len(NAMES))
    torch.manual_seed(0)
    model = build_model(cfg)
    branch = model.decoder.instance_branch
    for layer in (branch.iam_conv, branch.class_logits, branch.mask_kernel):
        torch.nn.init.normal_(layer.weight, std=0.3)
    torch.nn.init.constant_(branch.class_logits.bias, class_bias)
    data = {"model": model.state_dict(), "cfg": cfg.dump(), "class_names": NAMES, "category_ids": [3, 5, 9]}
    torch.save(data, path)
    return str(path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("weights") / "giam.pth", "GroupIAMDecoder")


@pytest.fixture(scope="module")
def predictor(weights):
    return Predictor.from_checkpoint(weights)


@pytest.fixture(scope="module", params=FORMATS)
def dynamic(request, predictor, files, tmp_path_factory):
    """A file of free batch and size, loaded, and what its gate found."""
    path = tmp_path_factory.mktemp("dynamic") / f"model.{request.param}"  # not as text, and neither are the images
    parity = export_verified(predictor, path, request.param, list(map(Path, files)), dynamic=True)
    return path, ExportedPredictor(path, trust=True), parity


def assert_same_instances(found, expected):
    """Scores to 1e-3, masks to IoU 0.99; best first, empty masks aside."""
    expected = expected[expected.scores > 0]
    expected = expected[expected.scores.argsort(descending=True, stable=True)]
    assert len(found) == len(expected) > 2
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-3, rtol=0)
    assert torch.equal(found.pred_classes, expected.pred_classes)
    union = (found.pred_masks | expected.pred_masks).flatten(1).sum(1)
    assert ((found.pred_masks & expected.pred_masks).flatten(1).sum(1) >= 0.99 * union).all()
    torch.testing.assert_close(found.pred_boxes.tensor, expected.pred_boxes.tensor, atol=2, rtol=0)


def test_free_batch_and_size_equal_the_predictor(dynamic, predictor, files):
    path, exported, parity = dynamic
    assert parity.failure == ""
    assert parity.images == 6  # batches of 1, 2 and 1, and the first image turned with its mirrored copy
    assert parity.masks > 30
    assert (exported.class_names, exported.category_id(1)) == (NAMES, 5)
    for file in files:
        assert_same_instances(exported(file), predictor(file))
    # Images of several sizes in one call: each as if it were alone.
    for found, file in zip(exported.batch([*files, files[0]]), [*files, files[0]]):
        assert_same_instances(found, predictor(file))
    described = json.loads(Path(f"{path}.json").read_text())
    assert described == exported.metadata
    assert described["size"] is None


@pytest.mark.filterwarnings("error:No complete tensor")
@pytest.mark.parametrize(
    ("format", "decoder", "dtype"),
    [
        pytest.param("onnx", "GroupIAMSoftDecoder", torch.float32, marks=needs_onnx),
        ("pt2", "BaseIAMDecoder", torch.uint8),
    ],
)
def test_fixed_batch_and_size(tmp_path, files, format, decoder, dtype):
    weights = save_checkpoint(tmp_path / "model.pth", decoder, backbone="build_resnet_backbone")
    predictor = Predictor.from_checkpoint(weights)
    path = str(tmp_path / f"model.{format}")
    parity = export_verified(predictor, path, format, files, size=(72, 96), batch=2, dtype=dtype)
    assert parity.failure == ""
    assert parity.images == 6
    exported = ExportedPredictor(path, trust=True)
    record = exported.preprocess(files[1])  # 90 x 70: made smaller than the config says, to fit
    assert record["image"].shape == (3, 72, 56)
    results = exported.batch(files)
    assert [x.image_size for x in results] == list(SIZES)
    assert_same_instances(results[0], predictor(files[0]))  # 72 x 96 is padded to 96 x 96 in both


def test_padding_does_not_matter(dynamic, predictor, files):
    exported = dynamic[1]
    record = exported.preprocess(files[0])
    height, width = record["image"].shape[-2:]
    results = []
    for value in (0, 200):
        images = np.full((1, 3, height + 5, width + 9), value, dtype=np.uint8)
        images[0, :, :height, :width] = record["image"]
        sizes = {"image_size": np.array([height, width]), "output_size": np.array([60, 80])}
        results.append(exported.session({"images": images, **sizes}))
    for name, first in results[0].items():
        assert np.array_equal(first, results[1][name]), name
    assert results[0]["masks"].shape == (1, 10, 60, 80)


def test_the_gate_sees_other_weights(dynamic, weights, files):
    for layer, change, message in (
        ("class_logits", lambda x: x.bias.add_(0.02), "missing|scores differ from PyTorch's by 0.0"),
        (
            "mask_kernel",
            lambda x: x.weight.mul_(torch.linspace(0.7, 1.3, len(x.weight))[:, None]),
            "missing|differ|IoU",
        ),
    ):
        other = Predictor.from_checkpoint(weights)
        with torch.no_grad():
            change(getattr(other.model.decoder.instance_branch, layer))
        assert re.search(message, compare(other, dynamic[1], files, repeats=1).failure)


def test_the_gate_refuses_what_finds_nothing(dynamic, predictor, files, monkeypatch):
    exported = dynamic[1]
    session = exported.session
    monkeypatch.setattr(exported, "session", lambda x: {name: np.zeros_like(y) for name, y in session(x).items()})
    assert re.match(r"\d+ detections of PyTorch's are missing", compare(predictor, exported, files, repeats=1).failure)
    silent = copy.copy(predictor)
    silent.model = copy.copy(predictor.model)
    silent.model.score_threshold = 1.0
    assert "nothing was compared: in 6 images" in compare(silent, exported, files, repeats=1).failure


def detections(*rows):
    """Instances of rows (score, label, x, pixels): a box of 10 x 10 at x, its mask has so many pixels."""
    result = Instances((10, 100))
    result.scores = torch.tensor([float(row[0]) for row in rows])
    result.pred_classes = torch.tensor([int(row[1]) for row in rows])
    result.pred_boxes = Boxes(torch.tensor([[row[2], 0.0, row[2] + 10, 10] for row in rows]).reshape(-1, 4))
    masks = torch.zeros(len(rows), 10, 100, dtype=torch.bool)
    for mask, row in zip(masks, rows):
        mask[:, :10] = (torch.arange(100) < row[3]).view(10, 10)
    result.pred_masks = masks
    return result


@pytest.mark.parametrize(
    ("expected", "found", "failure"),
    [
        # score, label, x and pixels of the mask: PyTorch's; the file's
        ([(0.5, 0, 0, 100)], [(0.5005, 0, 0, 100)], ""),
        ([(0.5, 0, 0, 100)], [(0.502, 0, 0, 100)], "scores differ from PyTorch's by 0.002"),
        ([(0.5, 0, 0, 100)], [(0.7, 0, 0, 100)], "1 detections of PyTorch's are missing"),
        ([(0.5, 0, 0, 100)], [], "1 detections of PyTorch's are missing"),
        ([], [(0.5, 0, 0, 100)], "1 detections are not PyTorch's"),
        ([(0.5, 0, 0, 100)], [(0.5, 1, 0, 100)], "1 detections of PyTorch's are missing"),
        ([], [], "nothing was compared"),
        ([(0.5, 0, 0, 0)], [(0.5, 0, 0, 0)], "nothing was compared"),
        ([(0.5, 0, 0, 100)], [(0.5, 0, 0.4, 100)], ""),
        ([(0.5, 0, 0, 100)], [(0.5, 0, 0.6, 100)], "a box differs from PyTorch's by 0.6 pixels"),
        ([(0.5, 0, 0, 100)], [(0.5, 0, 0, 99)], ""),
        # two pixels may always flip
        ([(0.5, 0, 0, 100)], [(0.5, 0, 0, 98)], ""),
        ([(0.5, 0, 0, 20)], [(0.5, 0, 0, 22)], ""),
        ([(0.5, 0, 0, 100)], [(0.5, 0, 0, 97)], "a mask has IoU 0.97"),
        ([(0.5, 0, 0, 20), (0.5, 0, 50, 9)], [(0.5, 0, 0, 20), (0.5, 0, 50, 6)], "a mask has IoU 0.66"),
        # two of them, each has its partner in whatever order they come
        ([(0.5, 0, 0, 100), (0.4, 0, 0, 50)], [(0.4, 0, 0, 50), (0.5, 0, 0, 100)], ""),
        ([(0.5, 0, 0, 100), (0.5, 0, 50, 50)], [(0.5, 0, 0, 100), (0.5, 0, 0, 50)], "1 detections of PyTorch's are"),
    ],
)
def test_figures_of_the_gate_by_hand(expected, found, failure):
    parity = Parity()
    parity.add(detections(*expected), detections(*found), limit=10)
    assert parity.failure.startswith(failure) if failure else parity.failure == ""


def test_the_gate_compares_semantic_maps():
    parity = Parity(has_maps=True)
    parity.add(detections(BEST), detections(BEST), limit=10)
    assert parity.failure == "the semantic maps of 1 images were not compared"
    expected = torch.arange(2000).view(40, 50) % 7
    for wrong, failure in ((2, ""), (3, "99.85% of a semantic map's pixels equal PyTorch's, less than 99.9%")):
        found = expected.clone()
        found.flatten()[:wrong] += 1
        parity.maps = 0
        parity.add_map(expected, found)
        assert parity.failure == failure
    assert parity.figures()["map_share"] == pytest.approx(0.9985)


BEST, SECOND, WORST = (0.9, 0, 0, 100), (0.6, 0, 30, 100), (0.3001, 0, 60, 100)


@pytest.mark.parametrize(
    ("expected", "found", "options", "same"),
    [
        # The list is full and the worst one may be another.
        ([BEST, WORST], [BEST, (0.3002, 0, 80, 100)], {"limit": 2}, True),
        ([BEST, WORST], [BEST, (0.3002, 0, 80, 100)], {"limit": 3}, False),
        ([BEST, SECOND], [BEST, WORST], {"limit": 2}, False),
        # A threshold that moves by 0.001 would take the detection, or give it.
        ([BEST, WORST], [BEST], {"moved": {1e-3: [BEST], -1e-3: [BEST, WORST]}}, True),
        ([BEST], [BEST, WORST], {"moved": {1e-3: [BEST], -1e-3: [BEST, WORST]}}, True),
        ([BEST, WORST], [BEST], {"moved": {1e-3: [BEST, WORST], -1e-3: [BEST, WORST]}}, False),
        # Boxes at 0 and 2.5 overlap by 75 of 125: just the threshold of NMS.
        ([BEST], [BEST, (0.6, 0, 2.5, 100)], {"nms_threshold": 0.6}, True),
        ([BEST], [BEST, (0.6, 1, 2.5, 100)], {"nms_threshold": 0.6}, False),
        ([BEST], [BEST, (0.6, 0, 2.5, 100)], {"nms_threshold": 0.5}, False),
        # ... and the one at 4 is suppressed by that at 2.5 alone.
        ([BEST, (0.5, 0, 4, 100)], [BEST, (0.6, 0, 2.5, 100)], {"nms_threshold": 0.6}, True),
        ([BEST, (0.5, 0, 9, 100)], [BEST, (0.6, 0, 2.5, 100)], {"nms_threshold": 0.6}, False),
    ],
)
def test_what_rounding_may_decide(expected, found, options, same):
    parity = Parity()
    moved = {by: [detections(*rows)] for by, rows in options.pop("moved", {}).items()}
    options = {"limit": 10, "moved": lambda by: moved.get(by, []), **options}
    parity.add(detections(*expected), detections(*found), **options)
    assert (parity.failure == "") == same


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 4), (7, 20), (12, 6), (13, 27)])
def test_pooling_of_traced_graphs(monkeypatch, shape):
    x = torch.randn(2, 3, *shape)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for size in (1, 2, 3, 6):
        torch.testing.assert_close(adaptive_average(x, size), F.adaptive_avg_pool2d(x, size))


def test_pools_inside_a_backbone_keep_their_sizes_free():
    """As in PVTv2's linear attention: traced at one size, run at another."""
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(7))).eval()
    plain = copy.deepcopy(net)
    make_pools_exportable(net)
    free = {2: torch.export.Dim("height", min=8, max=512), 3: torch.export.Dim("width", min=8, max=512)}
    program = torch.export.export(net, (torch.rand(1, 3, 20, 33),), dynamic_shapes=(free,))
    assert not any("adaptive" in str(node.target) for node in program.graph.nodes)
    x = torch.rand(1, 3, 41, 17)
    torch.testing.assert_close(net(x), plain(x))
    torch.testing.assert_close(program.module()(x), plain(x))


def test_a_file_that_fails_is_told_of(predictor, files, monkeypatch, tmp_path):
    monkeypatch.setattr(ExportedPredictor, "run", lambda *_: 1 / 0)
    with pytest.raises(ParityError, match=r"it fails on 1 images of \d+ x \d+ pixels \(division by zero\)"):
        export_verified(predictor, str(tmp_path / "x.pt2"), "pt2", files)
    assert not (tmp_path / "x.pt2").exists()


def test_scripts(tmp_path, weights, folder, monkeypatch, capsys):
    """Export by the script, then the same pictures and results from the file as from the checkpoint."""
    path = tmp_path / "model.pt2"
    words = ["--weights", weights, "--format", "pt2", "--output", str(path), "--images", str(folder)]
    assert run("export", [*words, "--size", "72", "96"]) == 0
    assert "worst score difference" in capsys.readouterr().out
    results = []
    for argument, value in (("--model", str(path)), ("--weights", weights)):
        out = tmp_path / argument
        words = [argument, value, "--trust", "--input", str(folder), "--output", str(out), "--score-threshold", "0.2"]
        assert run("predict", words) == 0
        written = {file.name for file in out.iterdir()}
        assert written == {"0.jpg", "1.jpg", "2.jpg", "images.json", "index.html", "results.json", "run.json"}
        found = json.loads((out / "results.json").read_text())
        found = [x for x in found if x["file_name"] != "1.png"]  # too high for 72 x 96: made smaller
        results.append(sorted(found, key=lambda x: (x["file_name"], -x["score"])))
    assert len(results[0]) == len(results[1]) > 3
    for found, expected in zip(*results):
        assert found["score"] == pytest.approx(expected["score"], abs=1e-3)
        for key in ("file_name", "image_id", "category_id", "category_name"):
            assert found[key] == expected[key]

    monkeypatch.setattr("instseg_d2.export.parity.MIN_IOU", 1.1)
    file = SimpleNamespace(save=lambda to: shutil.copy(path, to), information={})
    monkeypatch.setattr("instseg_d2.export.verified.export", lambda *_, **__: file)
    failing = tmp_path / "failing" / "model.pt2"
    words = ["--weights", weights, "--format", "pt2", "--output", str(failing), "--images", str(folder)]
    capsys.readouterr()
    assert run("export", words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "a mask has IoU" in line
    assert list(failing.parent.iterdir()) == []


def test_errors_are_one_sentence(tmp_path, predictor, weights, folder, monkeypatch, capsys):
    with pytest.raises(
        ConfigError, match=r"RetinaNet cannot be exported: only FCOSDetector, .*GeneralizedRCNN, PanopticFPN.* can"
    ):
        export(SimpleNamespace(cfg=tiny_config("MaskRCNN", "MODEL.META_ARCHITECTURE", "RetinaNet"), model=None), "onnx")
    with pytest.raises(ConfigError, match=r"BlendMask is exported for a fixed size and batch: leave out --dynamic"):
        export(Predictor(tiny_config("BlendMask"), "", optimize=False), "pt2", dynamic=True)
    with pytest.raises(ConfigError, match="masks of SparseInst are full or canvas; got crops"):
        export(predictor, "pt2", masks="crops")
    with pytest.raises(ConfigError, match="masks must be one of full, crops, canvas; got small"):
        export(predictor, "pt2", masks="small")
    elsewhere = Predictor(tiny_config("SparseInst", "MODEL.DEVICE", "meta"), "", optimize=False)
    with pytest.raises(ConfigError, match="models are exported on the CPU"):
        export(elsewhere, "pt2")
    with pytest.raises(ConfigError, match="must be one of onnx, openvino, pt2; got tflite"):
        export(predictor, "tflite")
    with pytest.raises(ConfigError, match="batch must be at least 1"):
        export(predictor, "pt2", batch=0)
    (tmp_path / "a.pt2").write_bytes(b"nothing")
    for name, kind, message in (
        ("a.pth", ConfigError, "a file of .onnx, .xml or .pt2"),
        ("b.pt2", FileNotFoundError, "b.pt2: there is no such file"),
        ("a.pt2", ConfigError, r"a\.pt2 is "),
    ):
        with pytest.raises(kind, match=message):
            ExportedPredictor(str(tmp_path / name), trust=True)
    common = ["--weights", weights, "--output", str(tmp_path / "c.onnx"), "--format"]
    for words, message in (
        ([*common, "pt2", "--images", str(folder)], "must end in .pt2"),
        ([*common, "onnx", "--images", "absent/*.jpg"], "absent/*.jpg: no such file"),
        ([*common, "onnx", "--images", str(folder), "--dynamic", "--batch", "2"], "--dynamic leaves batch"),
        ([*common, "onnx"], "give images (--images), on which the file is checked"),
        ([*common, "onnx", "--images", str(folder), "--max-images", "0"], "--max-images"),
    ):
        assert run("export", words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    words = ["--model", str(tmp_path / "a.pt2"), "--input", str(folder), "--output", str(tmp_path / "out")]
    assert run("predict", [*words, "MODEL.DEVICE", "cpu"]) == 2
    assert "--model takes no config" in capsys.readouterr().err


class MakesFolder:
    """What a malicious file holds: reading it makes a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_code_in_a_pt2_file_does_not_run_unless_trusted(tmp_path, folder, capsys):
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, tmp_path / "good.pt2")
    trace, evil = tmp_path / "trace", io.BytesIO()
    torch.save(MakesFolder(trace), evil)
    path = str(tmp_path / "evil.pt2")
    with zipfile.ZipFile(tmp_path / "good.pt2") as source, zipfile.ZipFile(path, "w") as target:
        for name in source.namelist():
            target.writestr(name, evil.getvalue() if "sample_inputs" in name else source.read(name))
    words = ["--model", path, "--input", str(folder), "--output", str(tmp_path / "out")]
    assert run("predict", words) == 2
    assert f"{path} is not loaded, because PyTorch runs whatever code a .pt2 file holds" in capsys.readouterr().err
    assert not trace.exists()
    with pytest.raises(ConfigError):
        ExportedPredictor(path, trust=True)
    assert trace.exists()  # which is why


def test_what_onnx_cannot_do(tmp_path, weights, monkeypatch):
    predictor = Predictor.from_checkpoint(weights)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if "onnx" in name else find(name, *a))
    with pytest.raises(ConfigError, match=r"need the packages onnx, onnxscript: pip install 'instseg_d2\[export\]'"):
        export(predictor, "onnx", size=(32, 32))
    (tmp_path / "a.onnx").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="need the package onnxruntime"):
        ExportedPredictor(str(tmp_path / "a.onnx"))

    class DeformConv(torch.nn.Identity):
        """Named as layers with deformable convolutions are."""

    predictor.model.backbone.extra = DeformConv()
    with pytest.raises(ConfigError, match="OpenVINO has no deformable convolutions"):
        export(predictor, "openvino")
