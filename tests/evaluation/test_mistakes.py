"""The mistakes of a model in an image, derived by hand; boxes stand for masks unless said otherwise."""

import numpy as np
import pycocotools.mask as mask_util
import pytest

from instseg_d2.evaluation.mistakes import FALSE, MISSED, WRONG_CLASS, Mistake, Objects, find_mistakes

A, B, FAR = [0, 0, 10, 10], [20, 0, 10, 10], [60, 60, 10, 10]
HALF_OF_A = [0, 0, 10, 5]  # IoU 0.5
LESS_OF_A = [0, 0, 10, 4]  # IoU 0.4
NOTHING = Objects([], [], [])


def found(*entries):
    """Detections of (class, box, score)."""
    labels, boxes, scores = zip(*entries)
    return Objects(labels, boxes, scores)


@pytest.mark.parametrize(
    ("detections", "truth", "expected"),
    [
        (NOTHING, Objects([], []), []),
        (found((0, A, 0.9)), Objects([0], [A]), []),
        (found((0, A, 0.9)), Objects([], []), [(FALSE, 0.9, 0, None)]),
        (NOTHING, Objects([0, 1], [A, B]), [(MISSED, 1, None, 0), (MISSED, 1, None, 1)]),
        # An IoU of 0.5 matches, 0.4 does not.
        (found((0, HALF_OF_A, 0.9)), Objects([0], [A]), []),
        (found((0, LESS_OF_A, 0.9)), Objects([0], [A]), [(MISSED, 1, None, 0), (FALSE, 0.9, 0, None)]),
        # The second detection of an object is false, although it overlaps more.
        (found((0, A, 0.6), (0, HALF_OF_A, 0.9)), Objects([0], [A]), [(FALSE, 0.6, 0, None)]),
        # The best overlap is taken, not the first one.
        (found((0, A, 0.9), (0, HALF_OF_A, 0.8)), Objects([0, 0], [HALF_OF_A, A]), []),
        (found((1, A, 0.7)), Objects([0], [A]), [(WRONG_CLASS, 0.7, 0, 0)]),
        # The right class is found first, whatever the scores: then the other detection is false.
        (found((1, A, 0.9), (0, A, 0.6)), Objects([0], [A]), [(FALSE, 0.9, 0, None)]),
        # A faint detection makes a miss cheaper; on its own it is no mistake.
        (found((0, A, 0.3), (0, FAR, 0.4)), Objects([0], [A]), [(MISSED, 0.7, None, 0)]),
        (found((1, A, 0.3)), Objects([0], [A]), [(MISSED, 1, None, 0)]),
        # Found faintly, and clearly as another class.
        (found((0, A, 0.3), (1, A, 0.8)), Objects([0], [A]), [(WRONG_CLASS, 0.8, 1, 0)]),
        # The highest cost comes first.
        (
            found((0, FAR, 0.55), (1, FAR, 0.95), (0, B, 0.2)),
            Objects([0, 0], [A, B]),
            [(MISSED, 1, None, 0), (FALSE, 0.95, 1, None), (MISSED, 0.8, None, 1), (FALSE, 0.55, 0, None)],
        ),
    ],
)
def test_by_hand(detections, truth, expected):
    result = find_mistakes(detections, truth)
    assert [mistake._replace(cost=round(mistake.cost, 6)) for mistake in result] == [Mistake(*e) for e in expected]


def test_crowds_are_neither_missed_nor_matched():
    crowd = Objects([0], [[0, 0, 100, 100]], crowds=[True])
    assert find_mistakes(NOTHING, crowd) == []
    on_it = found((0, A, 0.9), (0, B, 0.8))  # each lies on it with its whole area, at an IoU of 0.01
    assert find_mistakes(on_it, crowd) == []
    assert [m.kind for m in find_mistakes(found((1, A, 0.9)), crowd)] == [FALSE]  # of another class
    outside = found((0, [96, 0, 10, 10], 0.9))  # 4 of 10 columns
    assert [m.kind for m in find_mistakes(outside, crowd)] == [FALSE]
    both = Objects([0, 0], [[0, 0, 100, 100], A], crowds=[True, False])
    assert find_mistakes(found((0, A, 0.9)), both) == []


def test_masks_count_not_boxes():
    """A frame and the square in its middle have the same centre, and no pixel in common."""
    square = np.zeros((20, 20), np.uint8, order="F")
    square[3:17, 3:17] = 1
    frame = np.asfortranarray(1 - square)
    frame, square = mask_util.encode(frame), mask_util.encode(square)
    kinds = [m.kind for m in find_mistakes(Objects([0], [frame], [0.9]), Objects([0], [square]))]
    assert kinds == [MISSED, FALSE]
    assert find_mistakes(Objects([0], [square], [0.9]), Objects([0], [square])) == []


def test_thresholds():
    detections, truth = found((0, A, 0.5), (0, FAR, 0.49)), Objects([0], [LESS_OF_A])
    assert [m.kind for m in find_mistakes(detections, truth, 0.5, 0.5)] == [MISSED, FALSE]
    assert find_mistakes(detections, truth, 0.5, 0.4) == []
    assert [m.detection for m in find_mistakes(detections, truth, 0.49, 0.4)] == [1]
