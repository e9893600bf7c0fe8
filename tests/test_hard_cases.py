"""Every method on every hard case: training gives finite losses and gradients, inference valid detections."""

import contextlib
import copy
import itertools
import math

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from PIL import Image

from instseg_d2.data import InstanceDatasetMapper
from instseg_d2.errors import DatasetError
from instseg_d2.modeling.postprocessing import filter_detections, masks_to_boxes
from tests.tiny import METHODS, THIN, random_batch, tiny_config, tiny_model


def sample(masks: torch.Tensor, boxes=None, classes=None) -> dict:
    """An image of noise with objects of these masks (M, H, W), and boxes unless they are tight."""
    generator = torch.Generator().manual_seed(len(masks))
    height, width = masks.shape[1:]
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(masks_to_boxes(masks) if boxes is None else torch.tensor(boxes, dtype=torch.float32))
    instances.gt_classes = torch.zeros(len(masks), dtype=torch.int64) if classes is None else classes
    instances.gt_masks = BitMasks(masks)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": height, "width": width}


def rectangles(count, height, width, side):
    """Masks of squares side by side, row after row."""
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for i, mask in enumerate(masks):
        x, y = i * side % (width - side + 1), i * side // (width - side + 1) * side % (height - side + 1)
        mask[y : y + side, x : x + side] = True
    return masks


def empty(height=96, width=128):
    return sample(torch.zeros(0, height, width, dtype=torch.bool))


def without_masks():
    """Detectron2's sample for an image without objects."""
    record = empty()
    record["instances"].remove("gt_masks")
    return record


def as_polygons():
    batch = random_batch([2, 3])
    for record in batch:
        corners = record["instances"].gt_boxes.tensor.tolist()
        record["instances"].gt_masks = PolygonMasks([[[x1, y1, x2, y1, x2, y2]] for x1, y1, x2, y2 in corners])
    return batch


def every_class():
    record = sample(rectangles(3, 96, 128, 30))
    record["instances"].gt_classes = torch.arange(3)
    return record


TRAINING = {
    "only empty images": lambda: [empty(), empty()],
    "empty and full": lambda: [*random_batch([3]), empty()],
    "no field for masks": lambda: [*random_batch([2]), without_masks()],
    "every class": lambda: [every_class()],
    "box of zero area": lambda: [sample(torch.zeros(2, 96, 128, dtype=torch.bool), [[9, 9, 9, 9], [20, 30, 20, 50]])],
    "mask without a pixel": lambda: [sample(torch.zeros(1, 96, 128, dtype=torch.bool), [[10, 10, 40, 50]])],
    "mask of one pixel": lambda: [sample(rectangles(3, 96, 128, 1))],
    "object larger than the image": lambda: [
        sample(torch.ones(1, 96, 128, dtype=torch.bool), [[-50, -40, 300, 200]]),
        *random_batch([1]),
    ],
    "whole image": lambda: [sample(torch.ones(2, 96, 128, dtype=torch.bool))],
    "500 objects": lambda: [sample(rectangles(500, 96, 128, 5))],
    "one image of one pixel": lambda: [sample(torch.ones(1, 1, 1, dtype=torch.bool))],
    "images of one pixel": lambda: [sample(torch.ones(1, 1, 1, dtype=torch.bool)), empty(1, 1)],
    "strip of 32 x 2000": lambda: [sample(rectangles(5, 32, 2000, 20))],
    "batch of different sizes": lambda: [*random_batch([2], 40, 130), *random_batch([1], 96, 64), empty(33, 47)],
    "polygons": as_polygons,
    "neither height nor width": lambda: [
        {key: value for key, value in x.items() if key not in ("height", "width")} for x in random_batch([2, 0])
    ],
}


def check_training(model, batch, dtype=None):
    with EventStorage(), torch.autocast("cpu", dtype, enabled=dtype is not None):
        losses = model(batch)
        total = sum(losses.values())
    for name, loss in losses.items():
        assert torch.isfinite(loss), name
        assert loss.dtype == torch.float32, name
    total.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


@pytest.fixture(scope="module", params=METHODS)
def model(request):
    return tiny_model(request.param, *THIN, finding=True)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", TRAINING)
def test_training(model, case, dtype):
    model.train().zero_grad()
    check_training(model, TRAINING[case](), dtype)


def test_a_training_sample_without_ground_truth_is_named(model):
    (sample,) = random_batch([1])
    del sample["instances"]
    with pytest.raises(DatasetError, match=r"training sample a\.jpg has no 'instances'"):
        model.train()([{**sample, "file_name": "a.jpg"}])


@pytest.mark.parametrize("case", ["empty and full", "batch of different sizes"])
def test_training_in_float16(model, case):
    model.train().zero_grad()
    check_training(model, TRAINING[case](), torch.float16)


@contextlib.contextmanager
def scaled(model, scale):
    """Scale the last weights by this factor inside the block; restore them afterwards."""
    kept = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in [p for p in model.parameters() if p.dim() > 1][-6:]:
            parameter.mul_(scale)
    try:
        yield
    finally:
        model.load_state_dict(kept)


@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_training_on_extreme_values(model, scale):
    """Logits far beyond those of a sigmoid, in bfloat16."""
    model.train().zero_grad()
    with scaled(model, scale):
        check_training(model, random_batch([2, 3]), torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_inference_in_half_precision(model, dtype, scale):
    """Detections that overflow inside the network are dropped."""
    with scaled(model, scale), torch.no_grad(), torch.autocast("cpu", dtype):
        (output,) = model.eval()([{"image": random_batch([2])[0]["image"]}])
    check_detections(output, (96, 128), at_least=1 if scale == 1.0 else 0)


def test_what_is_no_number_is_left_out():
    result = Instances((8, 8), pred_boxes=Boxes(torch.ones(4, 4)), scores=torch.tensor([0.5, math.nan, 0.25, 0.125]))
    result.pred_boxes.tensor[2, 3] = math.inf
    assert filter_detections(result).scores.tolist() == [0.5, 0.125]
    result.remove("pred_boxes")
    assert filter_detections(result).scores.tolist() == [0.5, 0.25, 0.125]


def check_detections(output, size, at_least=0):
    instances = output["instances"]
    assert len(instances) >= at_least
    assert instances.image_size == size
    assert instances.pred_masks.shape == (len(instances), *size)
    assert instances.pred_masks.dtype == torch.bool
    boxes = instances.pred_boxes.tensor
    assert torch.isfinite(boxes).all()
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([size[1], size[0]] * 2) + 1).all()
    assert torch.isfinite(instances.scores).all()
    assert ((instances.scores >= 0) & (instances.scores <= 1)).all()


INFERENCE = {
    "one pixel": [(1, 1)],
    "flat strip": [(32, 2000)],
    "high strip": [(2000, 32)],
    "different sizes": [(40, 130), (96, 64), (33, 47)],
}


@pytest.mark.parametrize("case", INFERENCE)
def test_inference(model, case):
    generator = torch.Generator().manual_seed(0)
    sizes = INFERENCE[case]
    batch = [{"image": torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)} for size in sizes]
    with torch.no_grad():
        outputs = model.eval()(batch)
    for output, size in zip(outputs, sizes):
        check_detections(output, size, at_least=case == "different sizes")


@pytest.mark.parametrize("value", [0, 255])
def test_images_of_one_colour_at_another_size(model, value):
    image = torch.full((3, 64, 96), value, dtype=torch.uint8)
    with torch.no_grad():
        (output,) = model.eval()([{"image": image, "height": 33, "width": 201}])
    check_detections(output, (33, 201))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_classes", [1, 2, 3, 4, 7, 80])
def test_numbers_of_classes(method, num_classes):
    model = tiny_model(method, *THIN, num_classes=num_classes, finding=True)
    record = sample(rectangles(2, 64, 64, 20), classes=torch.tensor([0, num_classes - 1]))
    check_training(model, [record, sample(rectangles(1, 64, 64, 30))])
    with torch.no_grad():
        (output,) = model.eval()([{"image": record["image"]}])
    check_detections(output, (64, 64))
    assert (output["instances"].pred_classes < num_classes).all()


def encoded(mask, compressed):
    if compressed:
        return mask_util.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))
    pixels = mask.T.flatten().tolist()
    counts = [len(list(run)) for _, run in itertools.groupby(pixels)]
    return {"size": list(mask.shape), "counts": [0] * pixels[0] + counts}


GROUND_TRUTH = {
    "only crowds": [("rle", 1), ("rle", 1)],
    "crowd beside an object": [("counts", 1), ("polygon", 0)],
    "polygons": [("polygon", 0), ("polygon", 0)],
    "compressed run lengths": [("rle", 0)],
    "run lengths": [("counts", 0), ("counts", 0)],
    "every kind": [("polygon", 0), ("rle", 0), ("counts", 0)],
    "no annotations": [],
}


@pytest.mark.parametrize("case", GROUND_TRUTH)
def test_ground_truth_of_files(model, tmp_path, case):
    """Annotations as in files, through the mapper."""
    Image.new("RGB", (90, 60), (200, 10, 50)).save(tmp_path / "x.png")
    annotations = []
    for i, (kind, crowd) in enumerate(GROUND_TRUTH[case]):
        x, y = 5 + 25 * i, 8 + 5 * i
        mask = torch.zeros(60, 90, dtype=torch.bool)
        mask[y : y + 30, x : x + 20] = True
        corners = [x, y, x + 20, y, x + 20, y + 30, x, y + 30]
        segmentation = [list(map(float, corners))] if kind == "polygon" else encoded(mask, kind == "rle")
        box = {"bbox": [x, y, 20, 30], "bbox_mode": BoxMode.XYWH_ABS}
        annotations.append({**box, "category_id": 0, "segmentation": segmentation, "iscrowd": crowd})
    record = {
        "file_name": str(tmp_path / "x.png"),
        "image_id": 1,
        "height": 60,
        "width": 90,
        "annotations": annotations,
    }
    for mask_format in ("polygon", "bitmask"):
        cfg = tiny_config("BlendMask", "INPUT.MASK_FORMAT", mask_format, "INPUT.MIN_SIZE_TRAIN", (64,))
        mapped = InstanceDatasetMapper(cfg, is_train=True)(record)
        assert len(mapped["instances"]) == sum(not crowd for _, crowd in GROUND_TRUTH[case])
        model.train().zero_grad()
        check_training(model, [mapped, *random_batch([1], 64, 96)])


KINDS = {
    "grey": ("L", ".png", {}),
    "transparent": ("RGBA", ".png", {}),
    "palette": ("P", ".png", {}),
    "16 bits": ("I;16", ".png", {}),
    "CMYK": ("CMYK", ".jpg", {}),
    "rotated by EXIF": ("RGB", ".jpg", {"exif": True}),
    "12 megapixels": ("RGB", ".jpg", {"size": (3000, 4000)}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_image_files(model, tmp_path, kind):
    """Used for prediction and, with an object, for training."""
    mode, suffix, options = KINDS[kind]
    shape = options.get("size", (40, 70))
    pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    image = Image.fromarray(pixels.astype(np.uint16)[..., 0] * 256) if mode == "I;16" else Image.fromarray(pixels)
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    image = image if mode == "I;16" else image.convert(mode)
    image.save(tmp_path / f"x{suffix}", **({"exif": exif} if "exif" in options else {}))
    record = {"file_name": str(tmp_path / f"x{suffix}"), "image_id": 1}
    cfg = tiny_config("BlendMask", "INPUT.MIN_SIZE_TEST", 48, "INPUT.MIN_SIZE_TRAIN", (48,))
    mapped = InstanceDatasetMapper(cfg, is_train=False)(dict(record))
    size = shape[::-1] if "exif" in options else shape
    with torch.no_grad():
        (found,) = model.eval().infer(model.preprocess([mapped]))
        found["instances"] = found["instances"][: 3 if "size" in options else None]
        output = model.output(found, size, "full")
    check_detections(output, size)
    height, width = size
    x, y = width / 4, height / 4
    box = {"bbox": [x, y, width / 2, height / 2], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
    box["segmentation"] = [[x, y, 3 * x, y, 3 * x, 3 * y, x, 3 * y]]
    mapped = InstanceDatasetMapper(cfg, is_train=True)(
        {**record, "height": height, "width": width, "annotations": [box]}
    )
    assert len(mapped["instances"]) == 1
    model.train().zero_grad()
    check_training(model, [mapped])
