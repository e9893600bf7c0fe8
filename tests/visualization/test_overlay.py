"""What is drawn where: pixels of masks, outlines, boxes and tags change, all others stay."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from instseg_d2.modeling.postprocessing.detections import set_mask_format
from instseg_d2.visualization import class_name, draw_instances, instance_color

GREY = 100


def _image(height=120, width=160):
    return np.full((height, width, 3), GREY, np.uint8)


def _instances(rectangles, size=(120, 160), scores=None, classes=None, **fields):
    """One rectangular mask (x0, y0, x1, y1) per instance."""
    masks = torch.zeros(len(rectangles), *size, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, rectangles):
        mask[y0:y1, x0:x1] = True
    count = len(rectangles)
    return Instances(
        size,
        pred_boxes=Boxes(torch.tensor(rectangles, dtype=torch.float32).reshape(-1, 4)),
        pred_masks=masks,
        scores=torch.full((count,), 0.97) if scores is None else torch.tensor(scores),
        pred_classes=torch.zeros(count, dtype=torch.long) if classes is None else torch.tensor(classes),
        **fields,
    )


def test_mask_is_blended_with_the_color_of_its_index():
    drawn = draw_instances(_image(), _instances([(40, 50, 100, 100)]), ["dog"], alpha=0.5, labels=False)
    expected = [round(0.5 * GREY + 0.5 * value) for value in instance_color(0)]
    inside = drawn[53:97, 43:97].reshape(-1, 3).astype(int)
    assert np.abs(inside - expected).max() <= 1
    assert tuple(drawn[50, 70]) == instance_color(0)  # the outline and box
    untouched = np.ones((120, 160), bool)
    untouched[50:100, 40:100] = False
    assert (drawn[untouched] == GREY).all()


def test_alpha_zero_leaves_the_inside_alone_and_the_input_is_never_written():
    image = _image()
    drawn = draw_instances(image, _instances([(40, 50, 100, 100)]), alpha=0.0, labels=False)
    assert (drawn[53:97, 43:97] == GREY).all()
    assert (image == GREY).all()


def test_holes_of_a_mask_stay():
    instances = _instances([(40, 30, 120, 110)])
    instances.pred_masks[0, 60:80, 70:90] = False
    drawn = draw_instances(_image(), instances, labels=False, boxes=False)
    assert (drawn[63:77, 73:87] == GREY).all()
    assert (drawn[40, 50] != GREY).any()


def test_run_lengths_are_drawn_as_their_masks():
    rectangles = [(40, 30, 120, 110), (0, 0, 160, 120), (150, 100, 151, 101), (5, 5, 5, 5)]  # the last one is empty
    instances = _instances(rectangles, scores=[0.9, 0.2, 0.8, 0.7])
    instances.pred_masks[0, 60:80, 70:90] = False
    coded = set_mask_format(instances, "run_lengths")
    for options in ({}, {"score_threshold": 0.5}, {"boxes": False, "labels": False}):
        assert (draw_instances(_image(), coded, **options) == draw_instances(_image(), instances, **options)).all()
    with pytest.raises(ValueError, match="120"):
        draw_instances(_image(60, 60), coded)


def test_small_masks_lie_over_large_ones_whatever_their_order():
    small, large = (70, 60, 90, 80), (20, 20, 150, 115)
    for rectangles in ([small, large], [large, small]):
        drawn = draw_instances(_image(), _instances(rectangles), alpha=1.0, labels=False)
        assert tuple(drawn[70, 80]) == instance_color(rectangles.index(small))
        assert tuple(drawn[100, 40]) == instance_color(rectangles.index(large))


def test_tag_is_above_the_box_in_the_color_of_its_instance():
    plain = draw_instances(_image(), _instances([(40, 50, 100, 100)]), ["dog"], labels=False)
    drawn = draw_instances(_image(), _instances([(40, 50, 100, 100)]), ["dog"])
    rows, columns = np.nonzero((drawn != plain).any(axis=2))
    assert rows.max() < 50
    assert rows.min() > 30
    assert columns.min() == 40
    assert tuple(drawn[rows.min(), columns.min()]) == instance_color(0)
    region = drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(int)
    ink = np.abs(region - instance_color(0)).max(axis=2) > 60
    assert 0.05 < ink.mean() < 0.5  # there is text, and it does not fill the tag


@pytest.mark.parametrize("rectangle", [(0, 0, 20, 20), (150, 0, 160, 12), (150, 110, 160, 120), (0, 0, 160, 120)])
def test_tags_stay_inside_the_image(rectangle):
    drawn = draw_instances(_image(), _instances([rectangle]), ["a dog"], alpha=0.0)
    colored = (drawn == instance_color(0)).all(axis=2)
    x0, y0, x1, y1 = rectangle
    outside = colored.copy()
    outside[y0:y1, x0:x1] = False
    inside_tag = colored[y0 + 2 : y1 - 2, x0 + 2 : x1 - 2].sum()
    assert outside.sum() + inside_tag > 100  # a whole tag is somewhere in the picture


def test_tags_do_not_cover_each_other():
    rectangles = [(40, 50, 100, 100), (42, 50, 102, 101)]
    drawn = draw_instances(_image(), _instances(rectangles), ["dog"], alpha=0.0, boxes=False)
    for index in (0, 1):
        assert (drawn == instance_color(index)).all(axis=2).sum() > 200


def test_score_threshold_keeps_the_color_order_of_what_remains():
    instances = _instances([(10, 30, 40, 60), (60, 30, 90, 60)], scores=[0.3, 0.8])
    drawn = draw_instances(_image(), instances, alpha=1.0, labels=False, score_threshold=0.5)
    assert (drawn[30:60, 10:40] == GREY).all()
    assert tuple(drawn[45, 75]) == instance_color(0)


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (7, 5)])
def test_tiny_images(size):
    image = np.zeros((*size, 3), np.uint8)
    drawn = draw_instances(image, _instances([(0, 0, size[1], size[0])], size), ["dog"])
    assert drawn.shape == image.shape
    assert drawn.any()


def test_no_instances_no_masks_empty_masks_and_boxes_outside():
    image = _image()
    assert (draw_instances(image, _instances([])) == image).all()
    assert (draw_instances(image, Instances((120, 160), scores=torch.ones(2))) == image).all()
    boxes = Instances((120, 160), pred_boxes=Boxes(torch.tensor([[10.0, 10, 50, 50]])), scores=torch.ones(1))
    assert tuple(draw_instances(image, boxes)[30, 10]) == instance_color(0)
    empty = Instances((120, 160), pred_masks=torch.zeros(1, 120, 160, dtype=torch.bool), scores=torch.ones(1))
    assert (draw_instances(image, empty) == image).all()
    wild = torch.tensor([[-50.0, -50, 1000, 1000], [500, 500, 600, 600], [float("nan"), 0, float("inf"), 9]])
    outside = Instances((120, 160), pred_boxes=Boxes(wild), scores=torch.ones(3))
    assert draw_instances(image, outside).shape == image.shape


def test_masks_without_boxes_get_their_own_and_bitmasks_work():
    instances = _instances([(40, 50, 100, 100)])
    expected = draw_instances(_image(), instances, ["dog"])
    instances.remove("pred_boxes")
    instances.pred_masks = BitMasks(instances.pred_masks)
    assert (draw_instances(_image(), instances, ["dog"]) == expected).all()


def test_wrong_images_and_masks_are_refused():
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8"):
        draw_instances(np.zeros((5, 5), np.uint8), _instances([]))
    with pytest.raises(ValueError, match="cannot be drawn"):
        draw_instances(_image(60, 60), _instances([(0, 0, 9, 9)]))


def test_class_names_out_of_range():
    assert class_name(["dog"], 0) == "dog"
    assert class_name(["dog"], 1) == "class 1"
    assert class_name(None, 3) == "class 3"


def test_colors_are_stable_and_far_apart():
    colors = np.array([instance_color(index) for index in range(10)], float)
    assert [instance_color(index) for index in range(10)] == [tuple(int(v) for v in c) for c in colors]
    lab = cv2.cvtColor((colors[None] / 255).astype(np.float32), cv2.COLOR_RGB2Lab)[0]
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2) + 1e3 * np.eye(10)
    assert distance.min() > 30  # 2.3 is just noticeable
    assert len({instance_color(index) for index in range(200)}) > 190


def test_500_instances():
    rng = np.random.default_rng(0)
    corners = rng.integers(0, (1000, 700), (500, 2))
    sides = rng.integers(5, 80, (500, 2))
    instances = _instances([(x, y, x + w, y + h) for (x, y), (w, h) in zip(corners, sides)], (800, 1088))
    drawn = draw_instances(_image(800, 1088), instances, ["dog"])
    assert (drawn != GREY).any(axis=2).mean() > 0.4
