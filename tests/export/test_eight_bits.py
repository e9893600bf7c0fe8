"""8-bit files: which layers get 8 bits, how, and how a file is judged."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import nn

from instseg_d2.commands import run
from instseg_d2.commands.export import split_images
from instseg_d2.config import load_config
from instseg_d2.data import register_coco
from instseg_d2.errors import ConfigError
from instseg_d2.export import accuracy, compare_on_data, compare_on_images, export
from instseg_d2.export.accuracy import Accuracy, partners
from instseg_d2.methods import method_of
from instseg_d2.modeling.postprocessing import RunLengthMasks
from tests.export.test_methods import METHODS
from tests.tiny import tiny_config, tiny_model

HAVE_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAVE_ONNX, reason="onnx, onnxscript or onnxruntime is not installed")


class Pyramid(nn.Module):
    """One layer on two levels whose values differ a hundredfold, and one layer that stays wide."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.head = nn.Conv2d(3, 4, 3, bias=True)
        self.model.last = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        small, large = self.model.head(x), self.model.head(100 * x)
        return small, large, self.model.last(small.relu())


def on_grid(x, low, high, levels=255):
    """Rounded to the ``levels + 1`` values that 8 bits have from low to high, one of which is 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / levels
    zero = round(-low / scale)
    return (torch.round(x / scale) + zero).clamp(0, levels).sub(zero).mul(scale)


@needs_onnx
def saturates():
    """Whether this CPU adds pairs of 8-bit products in 16 bits, as ONNX Runtime does on x86 without VNNI."""
    cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").is_file() else ""
    return "avx2" in cpu and "vnni" not in cpu


@pytest.mark.skipif(saturates(), reason="sums of 8-bit products saturate on this CPU")
def test_layers_are_rounded_as_by_hand():
    """Activations have 256 values of one range, weights 255 of a range for each output channel."""
    import onnxruntime

    from instseg_d2.export.quantize import quantized

    torch.manual_seed(0)
    module = Pyramid().eval()
    x = torch.randn(1, 3, 8, 8)
    program = torch.export.export(module, (x,), strict=False)
    proto = torch.onnx.export(program, dynamo=True, input_names=["x"], opset_version=19, verbose=False).model_proto
    result = quantized(proto, ["head"], [{"x": x.numpy()}])
    session = onnxruntime.InferenceSession(result.SerializeToString(), providers=["CPUExecutionProvider"])
    small, large, last = map(torch.from_numpy, session.run(None, {"x": x.numpy()}))

    weight, bias = (p.detach() for p in module.model.head.parameters())
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    weight = torch.round(weight / scale).clamp(-127, 127) * scale
    for found, level in ((small, x), (large, 100 * x)):
        with torch.no_grad():
            exact = module.model.head(level)
        step = (exact.max() - exact.min()) / 255
        expected = nn.functional.conv2d(on_grid(level, float(level.min()), float(level.max())), weight, bias)
        expected = on_grid(expected, float(exact.min()), float(exact.max()))
        off = (found - expected).abs()
        assert off.max() <= 1.01 * step  # one value further where a sum is half way between two
        assert (off > 0.01 * step).float().mean() < 0.05
    with torch.no_grad():
        torch.testing.assert_close(last, module.model.last(small.relu()))
    with pytest.raises(ValueError, match="no convolution or linear layer in tail"):
        quantized(proto, ["tail"], [])


def instances(*rows, size=(20, 20)):
    """Rows of score, class, and first and last column of a mask of whole columns."""
    result = Instances(size)
    masks = torch.zeros(len(rows), *size, dtype=torch.bool)
    for mask, (_, _, first, last) in zip(masks, rows):
        mask[:, first:last] = True
    result.scores = torch.tensor([row[0] for row in rows])
    result.pred_classes = torch.tensor([row[1] for row in rows])
    result.pred_boxes = Boxes(torch.tensor([[float(a), 0.0, float(b), size[0]] for *_, a, b in rows]).view(-1, 4))
    result.pred_masks = RunLengthMasks.encode(masks)
    return result


@pytest.mark.parametrize("boxes", [False, True])
def test_partners_by_hand(boxes):
    expected = instances((0.9, 0, 0, 10), (0.8, 1, 0, 10), (0.7, 0, 10, 20), (0.49, 0, 5, 15))
    found = instances((0.41, 0, 0, 8), (0.9, 0, 9, 20), (0.3, 1, 0, 10), (0.6, 0, 18, 20))
    if boxes:
        for x in (expected, found):
            x.remove("pred_masks")
    # The second one's score has become too low, and the fourth does not count.
    assert partners(expected, found) == pytest.approx([0.8, 0.0, 10 / 11])
    assert partners(found, expected) == pytest.approx([10 / 11, 0.0])
    assert partners(expected, instances()) == [0.0, 0.0, 0.0]
    # Two pairs of little overlap would have a larger sum of IoUs than the one true pair.
    first = instances((0.9, 0, 0, 100), (0.9, 0, 10, 54), size=(4, 100))
    second = instances((0.9, 0, 10, 100), (0.9, 0, 51, 100), size=(4, 100))
    if boxes:
        for x in (first, second):
            x.remove("pred_masks")
    assert partners(first, second) == pytest.approx([0.9, 0.0])


@pytest.mark.parametrize(
    ("result", "failure"),
    [
        (Accuracy(images=5, detections=100, lost=2, added=2, mean_iou=0.95), ""),
        (Accuracy(images=5, detections=100, lost=3, mean_iou=1.0), "of 100 detections 3 are lost, more than 2%"),
        (Accuracy(images=5, detections=100, added=3, mean_iou=1.0), "of 100 detections 3 are added, more than 2%"),
        (Accuracy(images=5, detections=100, mean_iou=0.949), "the mean IoU with PyTorch's is 0.949, less than 0.95"),
        (Accuracy(images=5, detections=100, mean_iou=float("nan")), "the mean IoU with PyTorch's is nan"),
        (Accuracy(images=5), "nothing was compared: in 5 images PyTorch detects nothing"),
        (Accuracy(data="x", metric="segm AP", pytorch=40.0, exported=39.5), ""),
        (Accuracy(data="x", metric="segm AP", pytorch=40.0, exported=41.0), ""),
        (
            Accuracy(data="x", metric="segm AP", pytorch=40.0, exported=39.4),
            "the segm AP on x is 39.40, PyTorch's 40",
        ),
        (Accuracy(data="x", metric="segm AP", pytorch=40.0, exported=float("nan")), "the segm AP on x is nan"),
        (Accuracy(images=1, data="x", metric="AP", pytorch=0.0), "nothing was compared on x: PyTorch's AP is 0.0"),
        (Accuracy(images=1, data="x", metric="AP", exported=1.0), "nothing was compared on x: PyTorch's AP is nan"),
        (Accuracy(data="x"), "nothing was compared on x: it has no readable image"),
        (
            Accuracy(detections=9, mean_iou=1.0, map_shares=[1.0, 0.89]),
            "the semantic maps agree in 94.5%",
        ),
    ],
)
def test_limits(result, failure):
    assert result.failure.startswith(failure)
    assert bool(result.failure) == bool(failure)
    assert result.summary
    assert result.figures()["images"] == result.images


def test_calibration_has_enough_images(capsys, tmp_path):
    """Too few images, or a format without 8 bits, is one sentence, before anything is traced."""
    files = []
    for index in range(12):
        files.append(str(tmp_path / f"{index:02}.png"))
        Image.new("RGB", (40, 30), (index, 90, 200)).save(files[-1])
    common = ["--config-file", "quick/blendmask_shapes", "--format", "onnx", "--output", str(tmp_path / "x.onnx")]
    for words, message in (
        (["--images", *files[:12]], "of 12 there are 9, because every fifth image is kept for the check"),
        (["--images", *files[:9], "--data", "shapes_val"], "of 9 there are 9."),
        (["--images", *files, "--data", "shapes"], "shapes"),
        (["--images", *files, "--val-json", "a.json"], "--val-json and --val-images need each other"),
        (["--images", *files, "--data", "shapes_val", "--val-json", "a", "--val-images", "b"], "not both"),
    ):
        assert run("export", [*common, "--int8", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert run("export", [*common, "--data", "shapes_val", "--images", *files]) == 2
    assert "need --int8" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="8 bits need at least 10 images for calibration; got 9"):
        export(None, "onnx", calibration=files[:9])
    with pytest.raises(ConfigError, match="use --format onnx or openvino, not pt2"):
        export(None, "pt2", calibration=files)


def test_split_of_many_images():
    """300 of them spread over all calibrate, and none of these checks."""
    files = [str(index) for index in range(2000)]
    calibration, check = split_images(files, labelled=False)
    assert len(set(calibration)) == 300
    assert len(check) == 400
    assert not set(calibration) & set(check)
    assert int(calibration[-1]) > 1980
    assert split_images(files[:20], labelled=True) == (files[:20], [])


@pytest.fixture
def two_results(monkeypatch):
    """A predictor and a file whose results for an image are given: `results[name] = (PyTorch's, the file's)`."""
    results = {}
    exported = SimpleNamespace(
        tile=(),
        preprocess=lambda file, channel_order="BGR": {"image": file, "file": Path(file).name},
        canvas=lambda image: None,
        outputs=lambda records, masks: [{"instances": results[records[0]["file"]][1]}],
    )
    monkeypatch.setattr(
        accuracy,
        "reference",
        lambda predictor, records, canvas, masks: [{"instances": results[records[0]["file"]][0]}],
    )
    monkeypatch.setattr(accuracy, "time_both", lambda *_: (1.0, 1.0))
    predictor = SimpleNamespace(cfg=load_config("quick/blendmask_shapes"), class_names=["thing"])
    return results, predictor, exported


def test_lost_and_added_detections_are_counted(two_results):
    results, predictor, exported = two_results
    one, two = (0.9, 0, 0, 10), (0.8, 0, 12, 20)
    results["a"] = instances(one, two), instances(one, two)
    results["b"] = instances(one, two), instances(two)
    results["c"] = instances(one), instances((0.9, 0, 0, 9), two)
    found = compare_on_images(predictor, exported, ["a", "b", "c"])
    assert (found.images, found.detections, found.lost, found.added) == (3, 5, 1, 1)
    assert found.mean_iou == pytest.approx((1 + 1 + 1 + 0.9) / 4)
    assert "of 5 detections 1 are lost" in found.failure


def test_the_ap_of_both_is_measured(two_results, tmp_path):
    """Of two objects the file finds one: recall 0.5, and COCO's AP over 101 recalls is 51 / 101."""
    results, predictor, exported = two_results
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    boxes = [[0, 0, 10, 20], [12, 0, 8, 20]]
    objects = [
        {"id": i + 1, "image_id": 1, "category_id": 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
         "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        for i, (x, y, w, h) in enumerate(boxes)
    ]  # fmt: skip
    images = [{"id": 1, "file_name": "a.png", "width": 20, "height": 20}]
    content = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    name = f"eight_bits_{tmp_path.name}"
    register_coco(name, tmp_path / "a.json", tmp_path)
    one, two = (0.9, 0, 0, 10), (0.8, 0, 12, 20)
    results["a.png"] = instances(one, two), instances(one)
    accuracy.check_classes(predictor, name)
    found = compare_on_data(predictor, exported, name)
    assert (found.images, found.metric) == (1, "segm AP")
    assert found.pytorch == pytest.approx(100)
    assert found.exported == pytest.approx(100 * 51 / 101)
    assert found.failure
    predictor.class_names = ["other"]
    with pytest.raises(ConfigError, match="does not have the classes of the model: only the model has 'other'"):
        accuracy.check_classes(predictor, name)


@pytest.mark.parametrize("name", METHODS)
def test_modules_of_eight_bits_exist(name):
    model = tiny_model(name, finding=True)
    exportable = method_of(tiny_config(name, finding=True)).exportable(model)
    assert set(exportable.eight_bit_modules) <= set(dict(model.named_modules()))
