"""Every method on every hard case: training gives finite losses and gradients, inference sound detections."""

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from instseg_d2.modeling.postprocessing import boxes_of_masks
from tests.methods import METHODS, small_model
from tests.tiny import random_batch


def sample(masks: torch.Tensor, boxes=None, classes=None) -> dict:
    """An image of noise with objects of these masks (M, H, W) and, if they are not the tight ones, boxes."""
    generator = torch.Generator().manual_seed(len(masks))
    height, width = masks.shape[1:]
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(boxes_of_masks(masks) if boxes is None else torch.tensor(boxes, dtype=torch.float32))
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
    """What Detectron2's mapper gives for an image without objects."""
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
    "image of one pixel": lambda: [sample(torch.ones(1, 1, 1, dtype=torch.bool)), empty(1, 1)],
    "strip of 32 x 2000": lambda: [sample(rectangles(5, 32, 2000, 20))],
    "batch of different sizes": lambda: [*random_batch([2], 40, 130), *random_batch([1], 96, 64), empty(33, 47)],
    "polygons": as_polygons,
}


def check_training(model, batch, autocast=False):
    with EventStorage(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
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
    return small_model(request.param)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", TRAINING)
def test_training(model, case, autocast):
    model.train().zero_grad()
    check_training(model, TRAINING[case](), autocast)


@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_training_on_extreme_values(model, scale):
    """Logits far beyond those of a sigmoid, in bfloat16."""
    model.train().zero_grad()
    with torch.no_grad():
        kept = [p.clone() for p in model.parameters()]
        for parameter in [p for p in model.parameters() if p.dim() > 1][-6:]:
            parameter.mul_(scale)
    try:
        check_training(model, random_batch([2, 3]), autocast=True)
    finally:
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), kept):
                parameter.copy_(value)


def check_detections(output, size):
    instances = output["instances"]
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
    "strips": [(32, 2000), (2000, 32)],
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
        check_detections(output, size)


@pytest.mark.parametrize("value", [0, 255])
def test_images_of_one_colour_at_another_size(model, value):
    image = torch.full((3, 64, 96), value, dtype=torch.uint8)
    with torch.no_grad():
        (output,) = model.eval()([{"image": image, "height": 33, "width": 201}])
    check_detections(output, (33, 201))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_classes", [1, 2, 7, 80])
def test_numbers_of_classes(method, num_classes):
    model = small_model(method, num_classes=num_classes)
    record = sample(rectangles(2, 64, 64, 20), classes=torch.tensor([0, num_classes - 1]))
    check_training(model, [record, sample(rectangles(1, 64, 64, 30))])
    with torch.no_grad():
        (output,) = model.eval()([{"image": record["image"]}])
    check_detections(output, (64, 64))
    assert (output["instances"].pred_classes < num_classes).all()
