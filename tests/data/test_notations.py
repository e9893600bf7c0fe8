"""Masks and boxes in other notations than COCO's: read if unambiguous, else reported."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from instseg_d2.data.coco_check import examine
from instseg_d2.data.coco_masks import read_box, read_mask
from instseg_d2.data.segmentations import to_rle
from tests.coco_sets import SIZE, polygon, rectangles, write_set

WIDTH, HEIGHT = SIZE
FLAT = [8.0, 6.0, 32.0, 6.0, 32.0, 26.0, 8.0, 26.0]
OTHER = [50.0, 30.0, 70.0, 30.0, 60.0, 50.0]
PAIRS = np.reshape(FLAT, (-1, 2)).tolist()
POINTS = [{"x": x, "y": y} for x, y in PAIRS]
OTHER_PAIRS = np.reshape(OTHER, (-1, 2)).tolist()


def painted(*boxes):
    canvas = np.zeros((HEIGHT, WIDTH), bool)
    for x, y, w, h in boxes:
        canvas[y : y + h, x : x + w] = True
    return canvas


def runs(canvas):
    """Uncompressed RLE of a canvas, by hand."""
    values = canvas.ravel(order="F")
    counts, last, length = [], False, 0
    for value in values.tolist():
        if value != last:
            counts.append(length)
            last, length = value, 0
        length += 1
    return {"size": [HEIGHT, WIDTH], "counts": [*counts, length]}


def compressed(canvas):
    code = mask_util.encode(np.asfortranarray(canvas, np.uint8))
    return {"size": [HEIGHT, WIDTH], "counts": code["counts"].decode()}


SQUARE, LEFT, RIGHT = painted((8, 6, 24, 20)), painted((8, 6, 12, 20)), painted((20, 6, 12, 20))


@pytest.mark.parametrize(
    "mask",
    [
        [FLAT],
        FLAT,
        PAIRS,
        [PAIRS],
        [[PAIRS]],
        [[FLAT]],
        [[[FLAT]]],
        POINTS,
        [POINTS],
        [[POINTS]],
        [{**point, "label": 1} for point in POINTS],
        [[int(v) for v in pair] for pair in PAIRS],
        [*PAIRS, PAIRS[0]],  # closed
        [FLAT, []],
        [FLAT, [1.0, 2.0]],
        [FLAT, [1.0, 2.0, 3.0]],
        [PAIRS, []],
        runs(SQUARE),
        compressed(SQUARE),
        [runs(SQUARE)],
        [[compressed(SQUARE)]],
        [runs(LEFT), compressed(RIGHT)],
        [polygon([8, 6, 12, 20]), runs(RIGHT)],
        [runs(LEFT), polygon([20, 6, 12, 20])],
        [np.reshape(polygon([8, 6, 12, 20]), (-1, 2)).tolist(), runs(RIGHT)],
        [polygon([8, 6, 12, 20]), polygon([20, 6, 12, 20])],
        [np.reshape(polygon(box), (-1, 2)).tolist() for box in ([8, 6, 12, 20], [20, 6, 12, 20])],
        [[compressed(LEFT)], [[polygon([20, 6, 12, 20])]]],
        SQUARE.astype(int).tolist(),
        SQUARE.tolist(),
    ],
)
def test_one_square_in_all_notations(mask):
    read, _, fault = read_mask(mask, WIDTH, HEIGHT)
    assert fault is None
    assert np.array_equal(mask_util.decode(to_rle(read, HEIGHT, WIDTH)).astype(bool), SQUARE)
    assert read_mask(read, WIDTH, HEIGHT) == (read, None, None)  # nothing is left to do


@pytest.mark.parametrize("mask", [[FLAT, OTHER], [PAIRS, OTHER_PAIRS], [[FLAT], [OTHER]], [POINTS, OTHER_PAIRS]])
def test_polygons_stay_polygons(mask):
    assert read_mask(mask, WIDTH, HEIGHT)[0] == [FLAT, OTHER]


@pytest.mark.parametrize(
    ("mask", "fault"),
    [
        ([8, 6, 32, 26], "polygon with fewer than 3 points"),
        ([[8, 6], [32, 26]], "polygon with fewer than 3 points"),
        ([[[]]], "polygon with fewer than 3 points"),
        ([[8, 6, 1], [32, 6, 1], [32, 26, 1]], "polygon whose points are not pairs"),  # with visibilities
        ([[8, 6, 0, 1], [32, 6, 0, 1], [32, 26, 0, 1]], "polygon whose points are not pairs"),
        ([FLAT[:-1]], "polygon with an odd number of coordinates"),
        ([[*FLAT[:-1], "26"]], "polygon with a coordinate that is not a number"),
        ([[8, None], [32, 6], [32, 26]], "polygon with a coordinate that is not a number"),
        ([{"x": 8, "y": None}, *POINTS], "polygon with a coordinate that is not a number"),
        ([{"x": 8}, {"x": 9}, {"x": 10}], "mask that is neither polygon nor RLE"),
        ({"points": PAIRS}, "mask that is neither polygon nor RLE"),
        ({"size": [HEIGHT, WIDTH]}, "mask that is neither polygon nor RLE"),
        ("8 6 32 6", "mask that is neither polygon nor RLE"),
        (5, "mask that is neither polygon nor RLE"),
        ([FLAT, "x"], "mask that is neither polygon nor RLE"),
        ([FLAT, {"size": [HEIGHT, WIDTH], "counts": [5, 5]}], "broken RLE"),
        ([runs(LEFT), {"size": [WIDTH, HEIGHT], "counts": [0, WIDTH * HEIGHT]}], "RLE of another size than the image"),
    ],
)
def test_what_is_not_plain_is_named(mask, fault):
    assert read_mask(mask, WIDTH, HEIGHT) == (mask, None, fault)


def test_lists_without_end():
    mask = FLAT
    for _ in range(5000):
        mask = [mask]
    assert read_mask(mask, WIDTH, HEIGHT)[2] == "mask that is neither polygon nor RLE"


@pytest.mark.parametrize(
    "box",
    [
        [8, 6, 24, 20],
        [8.0, 6, 24, 20],
        [[8, 6, 24, 20]],
        {"x": 8, "y": 6, "width": 24, "height": 20},
        {"x": 8, "y": 6, "w": 24, "h": 20},
        {"left": 8, "top": 6, "width": 24, "height": 20},
        {"xmin": 8, "ymin": 6, "xmax": 32, "ymax": 26},
        {"x1": 8, "y1": 6, "x2": 32, "y2": 26},
        {"x0": 8, "y0": 6, "x1": 32, "y1": 26},
    ],
)
def test_boxes(box):
    assert read_box(box)[::2] == ([8, 6, 24, 20], None)


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ([20, 16, 24, 20, 0.3], "box that is not 4 numbers"),  # turned
        (FLAT, "box that is not 4 numbers"),
        (PAIRS[:2], "box that is not 4 numbers"),
        ([8, 6, 24], "box that is not 4 numbers"),
        (["8", "6", "24", "20"], "box that is not 4 numbers"),
        ({"x": 8, "y": 6}, "box that is not 4 numbers"),
        ("8 6 24 20", "box that is not 4 numbers"),
        (7, "box that is not 4 numbers"),
        ([8, 6, -24, 20], "box without area"),
        ({"xmin": 32, "ymin": 6, "xmax": 8, "ymax": 26}, "box without area"),
        ({}, "annotation with neither box nor mask"),
        (None, "annotation with neither box nor mask"),
    ],
)
def test_boxes_that_are_not_plain(box, fault):
    assert read_box(box) == (None, False, fault)


@pytest.mark.parametrize("clean", [True, False])
def test_a_file_of_pairs(tmp_path, clean):
    boxes = rectangles(5)

    def change(content):
        for annotation in content["annotations"]:
            annotation["segmentation"] = np.reshape(annotation["segmentation"], (-1, 2)).tolist()

    report = examine(*write_set(tmp_path, boxes, change), clean=clean)
    assert [row[:2] for row in report.findings] == [("annotations: mask or box in another notation", 5)]
    assert [x["segmentation"] for x in report.content["annotations"]] == [[polygon(box)] for box in boxes]
