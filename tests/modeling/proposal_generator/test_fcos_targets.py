"""Target assignment against a loop over every location and object."""

import math

import pytest
import torch

from instseg_d2.layers import LocationGrid
from instseg_d2.modeling.proposal_generator.fcos_targets import assign

STRIDES = (8, 16, 32, 64, 128)
RANGES = ((-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8))


def naive_assign(sizes, boxes_per_image, center_sample, radius, allowed=None, extent=0):
    """(row, object, ltrb / stride, centerness) of every positive location, by definition."""
    positives, row = [], 0
    for (height, width), stride, (low, high) in zip(sizes, STRIDES, RANGES):
        for image, boxes in enumerate(boxes_per_image):
            first_object = sum(len(b) for b in boxes_per_image[:image])
            for iy in range(height):
                for ix in range(width):
                    x, y = ix * stride + stride // 2, iy * stride + stride // 2
                    best, best_area = None, math.inf
                    for index, (x1, y1, x2, y2) in enumerate(boxes):
                        cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
                        region = [x1, y1, x2, y2]
                        if center_sample:
                            reach = radius * stride
                            region = [
                                max(cx - reach, x1),
                                max(cy - reach, y1),
                                min(cx + reach, x2),
                                min(cy + reach, y2),
                            ]
                        inside = region[0] < x < region[2] and region[1] < y < region[3]
                        sides = (x - x1, y - y1, x2 - x, y2 - y)
                        area = (x2 - x1 + extent) * (y2 - y1 + extent)
                        inside = inside and (allowed is None or allowed(first_object + index, x, y))
                        if inside and low <= max(sides) <= high and area < best_area:
                            best, best_area = (index, sides), area
                    if best is not None:
                        l, t, r, b = best[1]
                        centerness = math.sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))
                        positives.append((row, first_object + best[0], [s / stride for s in best[1]], centerness))
                    row += 1
    return positives


def grid_for(height, width, num_images):
    sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]
    return sizes, LocationGrid(num_images, sizes, STRIDES, "cpu")


def check(boxes_per_image, center_sample=True, radius=1.5, height=256, width=320):
    sizes, grid = grid_for(height, width, len(boxes_per_image))
    expected = naive_assign(sizes, boxes_per_image, center_sample, radius)
    boxes = torch.tensor([b for image in boxes_per_image for b in image], dtype=torch.float32).view(-1, 4)
    images = torch.tensor([i for i, image in enumerate(boxes_per_image) for _ in image], dtype=torch.int64)
    found = assign(grid, boxes, images, torch.tensor(RANGES), center_sample=center_sample, radius=radius)
    assert found.rows.tolist() == [p[0] for p in expected]
    assert found.objects.tolist() == [p[1] for p in expected]
    torch.testing.assert_close(found.ltrb, torch.tensor([p[2] for p in expected]).view(-1, 4))
    torch.testing.assert_close(found.centerness, torch.tensor([p[3] for p in expected]).view(-1))
    return found


def random_boxes(count, generator, integer=False):
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([260.0, 200.0])
    extent = torch.rand(count, 2, generator=generator) ** 2 * 250 + 2
    boxes = torch.cat([corner, corner + extent], 1)
    # Quarters of pixels are exact in float32 and put many locations exactly on a border.
    return ((boxes * 0.25).round() * 4 if integer else (boxes * 4).round() / 4).tolist()


@pytest.mark.parametrize("center_sample", [True, False])
@pytest.mark.parametrize(("seed", "integer"), [(0, False), (1, True), (2, False)])
def test_matches_the_naive_loop(center_sample, seed, integer):
    generator = torch.Generator().manual_seed(seed)
    found = check([random_boxes(n, generator, integer) for n in (7, 0, 12)], center_sample)
    assert len(found.rows) > 20


@pytest.mark.parametrize("radius", [0.5, 1.0, 2.0, 2.5])
def test_other_radii(radius):
    generator = torch.Generator().manual_seed(3)
    check([random_boxes(6, generator, True), random_boxes(6, generator, True)], radius=radius)


def test_hand_derived_case():
    # A 40 x 40 box around (28, 28): on stride 8 the centre region is (16, 40), which holds the locations 20, 28, 36.
    _, grid = grid_for(64, 64, 1)
    found = assign(
        grid,
        torch.tensor([[8.0, 8.0, 48.0, 48.0]]),
        torch.tensor([0]),
        torch.tensor(RANGES),
        center_sample=True,
        radius=1.5,
    )
    rows = [y * 8 + x for y in (2, 3, 4) for x in (2, 3, 4)]
    assert found.rows.tolist() == rows
    assert found.centerness[4] == 1.0
    assert found.ltrb[0].tolist() == [1.5, 1.5, 3.5, 3.5]


def test_identical_boxes_go_to_the_first():
    found = check([[[20.0, 20.0, 60.0, 60.0], [20.0, 20.0, 60.0, 60.0]]])
    assert set(found.objects.tolist()) == {0}


def test_object_centred_on_the_left_border_keeps_the_others():
    found = check([[[-20.0, 40.0, 20.0, 80.0], [100.0, 100.0, 160.0, 150.0]]])
    assert 1 in found.objects.tolist()


def test_no_objects():
    found = check([[], []])
    assert found.rows.numel() == 0


def test_objects_outside_the_image_and_without_area():
    found = check([[[500.0, 500.0, 600.0, 600.0], [30.0, 30.0, 30.0, 60.0], [10.0, 10.0, 50.0, 60.0]]])
    assert set(found.objects.tolist()) == {2}


def test_rows_and_cells_are_inverse():
    sizes, grid = grid_for(96, 128, 3)
    rows = torch.arange(grid.num_rows)
    level, image, y, x = grid.locate(rows)
    assert torch.equal(grid.row(level, image, y, x), rows)
    assert grid.num_rows == 3 * sum(h * w for h, w in sizes)
    assert grid.pixels(level[:1], y[:1], x[:1]).tolist() == [[4.0, 4.0]]
