"""Run lengths equal pycocotools', and evaluation with them gives Detectron2's results."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances

from instseg_d2.apps.costs import cpu_peak
from instseg_d2.evaluation.coco import coco_results
from instseg_d2.modeling.postprocessing import RunLengthMasks, detections
from instseg_d2.modeling.postprocessing.run_lengths import TOGETHER
from projects.benchmarks.stages import large_image_row, some_detections
from tests.tiny import METHODS, tiny_model


def naive_runs(mask):
    """Down the columns, pixel by pixel, background first."""
    runs, value = [0], False
    for pixel in mask.T.flatten():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def masks_of_every_kind(height, width):
    generator = np.random.default_rng(height * 100 + width)
    masks = np.zeros((12, height, width), bool)
    masks[1] = True
    masks[2, 0, 0] = masks[3, -1, -1] = masks[4, height // 2, width // 2] = True
    masks[5, :, width // 2 :] = True  # runs go on from column to column
    masks[6, :, 0] = masks[6, :, -1] = True
    masks[7, height // 3 :, : width // 2 + 1] = True
    masks[8:] = generator.random((4, height, width)) < [[[0.1]], [[0.5]], [[0.9]], [[0.99]]]
    return torch.from_numpy(masks)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (5, 8), (33, 20)])
def test_codes_are_those_of_pycocotools(height, width):
    masks = masks_of_every_kind(height, width)
    found = RunLengthMasks.encode(masks)
    assert len(found) == len(masks)
    for code, mask in zip(found.codes, masks.numpy()):
        expected = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert code["counts"] == expected["counts"]
        assert list(code["size"]) == [height, width]
        by_hand = mask_util.frPyObjects({"size": [height, width], "counts": naive_runs(mask)}, height, width)
        assert code["counts"] == by_hand["counts"]
    assert torch.equal(found.decode(), masks)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (7, 1), (5, 8), (33, 20)])
def test_windows(height, width):
    """Against padded arrays."""
    masks = masks_of_every_kind(height, width)
    coded = RunLengthMasks.encode(masks)
    padded = torch.nn.functional.pad(masks, (70, 70, 70, 70))
    for x, y, h, w in ((0, 0, height, width), (-3, -7, 60, 45), (2, 1, 3, 4), (-1, 2, 4, 30), (width, 0, 2, 2)):
        found = coded.window(x, y, (h, w))
        expected = padded[:, y + 70 : y + 70 + h, x + 70 : x + 70 + w]
        assert torch.equal(found.decode(), expected)
        assert found.codes == RunLengthMasks.encode(expected).codes
    assert len(coded[:0].window(0, 0, (2, 3))) == 0


def test_windows_of_many_masks():
    """More than are encoded together."""
    masks = masks_of_every_kind(5, 8).repeat(40, 1, 1)
    coded = RunLengthMasks.encode(masks)
    assert torch.equal(coded.decode(), masks)
    assert len(masks) > 2 * TOGETHER
    assert torch.equal(coded.window(2, 1, (3, 4)).decode(), masks[:, 1:4, 2:6])


def test_windows_without_pixels():
    found = RunLengthMasks.encode(torch.ones(2, 3, 3, dtype=torch.bool)).window(0, 0, (0, 4))
    assert found.decode().shape == (2, 0, 4)
    assert not found.window(0, 0, (2, 2)).decode().any()


def test_windows_of_codes_that_leave_out_the_end():
    """Each mask is read on its own."""
    counts = ([2, 3], [2, 3, 11], [0, 16])
    codes = mask_util.frPyObjects([{"size": [4, 4], "counts": x} for x in counts], 4, 4)
    found = RunLengthMasks(codes, (4, 4)).window(0, 0, (4, 4)).decode()
    assert found.sum((1, 2)).tolist() == [3, 3, 16]
    assert torch.equal(found[0], found[1])


def test_windows_of_large_masks():
    """Their numbers take several characters."""
    mask = np.zeros((3000, 4000), bool)
    mask[100:2900, 5:3990] = mask[0, 0] = mask[-1, -1] = True
    mask[200:300, 700:900] = False
    found = RunLengthMasks.encode(torch.from_numpy(mask[None])).window(-500, -70, (3200, 4600))
    expected = np.pad(mask, ((70, 130), (500, 100)))
    assert torch.equal(found.decode(), torch.from_numpy(expected[None]))


def test_as_a_field_of_instances():
    masks = masks_of_every_kind(5, 8)
    instances = Instances((5, 8), pred_masks=RunLengthMasks.encode(masks), scores=torch.arange(12.0))
    chosen = instances[instances.scores > 8].to("cpu")
    assert torch.equal(chosen.pred_masks.decode(), masks[9:])
    assert torch.equal(instances[[3, 1]].pred_masks.decode(), masks[[3, 1]])
    assert torch.equal(instances[2].pred_masks.decode(), masks[2:3])
    assert torch.equal(Instances.cat([instances[:2], instances[5:]]).pred_masks.decode(), masks[[0, 1, *range(5, 12)]])
    empty = RunLengthMasks.encode(masks[:0])
    assert empty.decode().shape == (0, 5, 8)
    assert len(empty[[]]) == 0


def test_results_are_those_of_detectron2():
    masks = masks_of_every_kind(20, 30)
    count = len(masks)
    instances = Instances(
        (20, 30), pred_boxes=Boxes(torch.rand(count, 4)), scores=torch.rand(count), pred_classes=torch.arange(count)
    )
    assert coco_results(instances, 7) == instances_to_coco_json(instances, 7)
    instances.pred_masks = masks
    expected = instances_to_coco_json(instances, 7)
    for masks in (instances.pred_masks, RunLengthMasks.encode(instances.pred_masks)):
        instances.pred_masks = masks
        found = coco_results(instances, 7)
        for a, b in zip(found, expected):
            a["segmentation"]["size"] = list(a["segmentation"]["size"])
            assert a == b
    assert coco_results(instances[:0], 7) == []


@pytest.mark.parametrize("method", METHODS)
def test_inference_in_parts(method, monkeypatch):
    """A few masks at a time, of images resized to other sizes: the same pixels, boxes and scores, in every form."""
    model = tiny_model(method, finding=True).eval()
    torch.manual_seed(0)
    batch = [
        {"image": torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8), "height": 120, "width": 161},
        {"image": torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)},
    ]
    expected = model(batch)
    monkeypatch.setattr(detections, "MASK_PIXELS", 7 * 120 * 161)
    for form in ("full", "run_lengths", "none"):
        for a, b in zip(model.detect(batch, masks=form), expected):
            assert a.keys() == b.keys()
            a, b = a["instances"], b["instances"]
            assert len(a) > 10
            if form == "none":
                assert not a.has("pred_masks")
            else:
                masks = a.pred_masks.decode() if form == "run_lengths" else a.pred_masks
                assert torch.equal(masks, b.pred_masks)
            assert set(b.get_fields()) == {"pred_boxes", "scores", "pred_classes", "pred_masks"}
            assert torch.equal(a.scores, b.scores)
            assert torch.equal(a.pred_classes, b.pred_classes)
            assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
    with pytest.raises(ValueError, match="masks is 'rle'; it must be one of full, run_lengths, none"):
        model.detect(batch, masks="rle")


@pytest.mark.parametrize("method", METHODS)
def test_the_threshold_comes_before_the_masks(method, monkeypatch):
    """Only detections that reach the threshold are postprocessed; an equal score is kept."""
    model = tiny_model(method, finding=True).eval()
    torch.manual_seed(0)
    batch = [{"image": torch.randint(0, 256, (3, 96, 128), dtype=torch.uint8)}]
    postprocess, counts = model.postprocess, []
    monkeypatch.setattr(model, "postprocess", lambda x, *rest: counts.append(len(x)) or postprocess(x, *rest))
    every = model.detect(batch)[0]["instances"]
    threshold = float(every.scores.median())
    found = model.detect(batch, threshold)[0]["instances"]
    expected = every[every.scores >= threshold]
    assert len(every) > len(found) == len(expected) > 5
    assert counts[1] < 0.7 * counts[0]
    assert torch.equal(found.scores, expected.scores)
    assert torch.equal(found.pred_masks, expected.pred_masks)
    assert len(model.detect(batch, 1.1)[0]["instances"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize(("method", "share"), [("SparseInst", 1), *((method, 4) for method in METHODS)])
def test_memory_of_a_large_image(method, share, monkeypatch):
    """60 detections on 12 megapixels, whose masks would take 687 MiB as one tensor; or a fourth of all this."""
    monkeypatch.setattr(detections, "MASK_PIXELS", detections.MASK_PIXELS // share)
    model = tiny_model(method, finding=True).eval()
    found, peak, _ = large_image_row(model, count=60, size={1: (3000, 4000), 4: (1500, 2000)}[share])
    assert 50 < found <= 60
    assert peak < 400 * 2**20 / share


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_memory_of_full_masks(method, monkeypatch):
    """Beside the full-size result, only some masks exist at a time, not all again; in one part the masks are equal."""
    model = tiny_model(method, finding=True).eval()
    result, again = some_detections(model, 40), some_detections(model, 40)  # Detectron2 scales boxes in place
    size = (1500, 2000)
    monkeypatch.setattr(detections, "MASK_PIXELS", 3 * 1500 * 2000)
    parts = []
    peak = cpu_peak(lambda: parts.append(detections.postprocess_in_chunks(result, size, "full", model.postprocess)))
    masks = parts[0].pred_masks
    assert peak < masks.numel() + 80 * 2**20 < 1.9 * masks.numel()
    whole = model.postprocess(again, size)
    assert torch.equal(masks, whole.pred_masks)
    assert torch.equal(parts[0].scores, whole.scores)
