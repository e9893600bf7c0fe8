"""Assembling inside boxes against RoIAlign of whole boxes; crops by hand."""

import pytest
import torch
from detectron2.structures import Boxes
from torchvision.ops import roi_align

from instseg_d2.layers import assemble_boxes, crop_nearest, join_boxes


def test_boxes_of_images():
    corners, images = join_boxes([Boxes(torch.ones(2, 4)), Boxes(torch.zeros(0, 4)), Boxes(torch.zeros(1, 4))])
    assert corners.shape == (3, 4)
    assert images.tolist() == [0, 0, 2]


def test_nearest_crop_by_hand():
    bases = torch.arange(16.0).view(1, 1, 4, 4)
    crop = crop_nearest(bases, torch.tensor([[4.0, 4.0, 12.0, 12.0]]), torch.tensor([0]), 4, 0.25)
    assert crop[0, 0].tolist() == [[5, 5, 6, 6], [5, 5, 6, 6], [9, 9, 10, 10], [9, 9, 10, 10]]


def boxes_in_images(count=7, images=2, seed=0):
    """Boxes from below a cell to beyond the map of 20 x 30 cells of 8 pixels."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([240.0, 160.0]) - 20
    boxes = torch.cat([corner, corner + torch.rand(count, 2, generator=generator) * 150], dim=1)
    boxes[0, 2:] = boxes[0, :2] + 3.0
    boxes[1] = torch.tensor([-500.0, -500.0, -300.0, -400.0])
    return boxes, torch.randint(images, (count,), generator=generator)


def naive_assemble(maps, boxes, batch_index, grid, resolution, crop):
    """Crops all maps in the whole box, then picks the map of each cell."""
    channels = maps.shape[1] // grid**2
    crops = crop(maps, torch.cat([batch_index[:, None].to(boxes), boxes], dim=1))
    out = torch.zeros(len(boxes), channels, resolution, resolution, dtype=crops.dtype)
    for i in range(resolution):
        for j in range(resolution):
            part = (i * grid // resolution) * grid + j * grid // resolution
            out[:, :, i, j] = crops[:, part * channels : (part + 1) * channels, i, j]
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [1, 2])
@pytest.mark.parametrize(("grid", "resolution", "channels"), [(1, 3, 1), (3, 9, 1), (5, 28, 1), (5, 14, 3), (4, 2, 1)])
def test_assembles_what_roi_align_of_the_box_reads(aligned, sampling_ratio, grid, resolution, channels):
    maps = torch.randn(2, grid**2 * channels, 20, 30, generator=torch.Generator().manual_seed(1)).requires_grad_()
    boxes, index = boxes_in_images()

    def crop(maps, rois):
        return roi_align(maps, rois, resolution, 0.125, sampling_ratio=sampling_ratio, aligned=aligned)

    expected = naive_assemble(maps, boxes, index, grid, resolution, crop)
    actual = assemble_boxes(maps, boxes, index, grid, resolution, 0.125, sampling_ratio=sampling_ratio, aligned=aligned)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)
    grad = torch.randn_like(actual)
    (expected_grad,) = torch.autograd.grad(expected, maps, grad)
    (actual_grad,) = torch.autograd.grad(actual, maps, grad)
    torch.testing.assert_close(actual_grad, expected_grad, rtol=0, atol=1e-3)


def test_adaptive_sampling():
    """Cells of 1.3 x 1.7 map cells are sampled at 2 x 2 points, in a part as in the box."""
    maps = torch.randn(1, 9, 40, 40)
    box = torch.tensor([[20.0, 30.0, 20 + 8 * 1.3 * 8, 30 + 8 * 1.7 * 8]])
    expected = naive_assemble(maps, box, torch.zeros(1), 3, 8, lambda m, r: roi_align(m, r, 8, 0.125, 0, True))
    actual = assemble_boxes(maps, box, torch.zeros(1, dtype=torch.int64), 3, 8, 0.125)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("resolution", [4, 7])
def test_nearest(resolution):
    maps = torch.randn(2, 9, 20, 30)
    boxes, index = boxes_in_images(seed=2)
    expected = naive_assemble(
        maps, boxes, index, 3, resolution, lambda m, r: crop_nearest(m, boxes, index, resolution, 0.125)
    )
    actual = assemble_boxes(maps, boxes, index, 3, resolution, 0.125, interpolation="nearest")
    assert (actual != expected).float().mean() < 0.01  # a centre between two cells may round either way


def test_no_boxes_and_no_images():
    maps = torch.randn(2, 50, 4, 4, requires_grad=True)
    out = assemble_boxes(maps, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 5, 14, 0.125)
    assert out.shape == (0, 2, 14, 14)
    assert not torch.autograd.grad(out.sum(), maps)[0].any()
    assert assemble_boxes(maps[:0], torch.zeros(0, 4), torch.zeros(0).long(), 5, 14, 0.125).shape == (0, 2, 14, 14)
