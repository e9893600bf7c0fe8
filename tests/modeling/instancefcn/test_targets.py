"""Windows of InstanceFCN: labels, samples, mask targets and losses against loops over windows and cells."""

import math

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks

from instseg_d2.modeling.instancefcn.criterion import window_losses
from instseg_d2.modeling.instancefcn.targets import (
    SampledWindows,
    WindowRules,
    cell_masks,
    label_windows,
    mask_targets,
    sample_windows,
)
from instseg_d2.modeling.instancefcn.windows import window_corners

RULES = WindowRules()


def naive_labels(boxes, size, image_size, stride, mask_size, rules):
    """Label and object of every window, by the definition."""
    labels, objects = [], []
    for y in range(size[0]):
        for x in range(size[1]):
            center_y = (y - mask_size // 2) * stride + mask_size * stride / 2
            center_x = (x - mask_size // 2) * stride + mask_size * stride / 2
            best, closest, near = len(boxes), math.inf, False
            for index, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
                octaves = abs(math.log2(max(x2 - x1, y2 - y1) / rules.canonical_size))
                dx, dy = abs((x1 + x2) / 2 - center_x), abs((y1 + y2) / 2 - center_y)
                if (
                    octaves <= rules.positive_octaves
                    and max(dx, dy) <= rules.positive_shift
                    and dx**2 + dy**2 < closest
                ):
                    best, closest = index, dx**2 + dy**2
                near |= octaves <= rules.negative_octaves and max(dx, dy) < rules.negative_shift
            objects.append(best)
            if center_y >= image_size[0] or center_x >= image_size[1]:
                labels.append(-1)
            else:
                labels.append(1 if best < len(boxes) else -1 if near else 0)
    return labels, objects


def random_boxes(count, height, width, generator):
    """Objects of mostly canonical size, at multiples of half a pixel, so that distances are exact."""
    center = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    side = 96 * 2 ** (torch.rand(count, 1, generator=generator) * 3 - 1.5)
    extent = side * torch.tensor([1.0, 0.6])
    return ((torch.cat([center - extent / 2, center + extent / 2], 1)) * 2).round() / 2


@pytest.mark.parametrize("mask_size", [21, 15, 8])
@pytest.mark.parametrize("stride", [8, 4])
def test_labels_are_those_of_the_loop(mask_size, stride):
    generator = torch.Generator().manual_seed(mask_size + stride)
    size, image_size = (18, 23), (18 * stride - 5, 23 * stride - 9)
    for count in (0, 1, 4, 12):
        boxes = random_boxes(count, *image_size, generator)
        labels, objects = label_windows(boxes, size, image_size, stride, mask_size, RULES)
        expected = naive_labels(boxes, size, image_size, stride, mask_size, RULES)
        assert labels.tolist() == expected[0]
        assert objects.tolist() == expected[1]


def test_labels_by_hand():
    """Centres on cell (10, 10), that is pixel 84: a canonical object, exact borders, sizes just in and just out."""
    size, image_size = (24, 24), (192, 192)

    def labels(side, shift=0.0):
        box = torch.tensor([[84 - side / 2 + shift, 84 - side / 2, 84 + side / 2 + shift, 84 + side / 2]])
        return label_windows(box, size, image_size, 8, 21, RULES)[0].view(size)

    found = labels(96.0)
    assert (found == 1).sum() == 9  # 12 pixels: one cell of 8 to each side
    assert (found[9:12, 9:12] == 1).all()
    assert (found == -1).sum() == 25 - 9  # closer than 24: two cells
    assert labels(96.0, shift=4.0)[10].tolist().count(1) == 4  # cells at -12, -4, 4 and 12, borders included
    assert (labels(114.0) == 1).any()
    assert not (labels(114.5) == 1).any()
    assert (labels(114.5) == -1).sum() == 25
    assert (labels(192.0) == -1).sum() == 25
    assert (labels(192.5) == 0).all()
    assert (labels(48.0) == -1).sum() == 25
    assert (labels(47.5) == 0).all()


def test_the_closest_object_wins():
    boxes = torch.tensor([[36.0, 36, 132, 132], [44.0, 36, 140, 132]])  # centres (84, 84) and (92, 84)
    objects = label_windows(boxes, (24, 24), (192, 192), 8, 21, RULES)[1].view(24, 24)
    assert objects[10, 9:13].tolist() == [0, 0, 1, 1]


def test_many_objects_of_one_place():
    boxes = torch.tensor([[36.0, 36, 132, 132]]).repeat(300, 1)
    labels, objects = label_windows(boxes, (24, 24), (192, 192), 8, 21, RULES)
    assert objects[labels == 1].tolist() == [0] * 9


def test_samples():
    labels = torch.zeros(4, 900, dtype=torch.int64)
    labels[0, :300] = 1  # more positives than half of 256
    labels[1, :20] = 1
    labels[2, :890] = -1  # ten negatives alone
    labels[3] = -1
    objects = torch.arange(900).repeat(4, 1)
    torch.manual_seed(0)
    found = sample_windows(labels, objects, RULES)
    assert found.positives_used.sum(1).tolist() == [128, 20, 0, 0]
    assert found.negatives_used.sum(1).tolist() == [128, 236, 10, 0]
    for image in range(4):
        positives = found.positives[image, found.positives_used[image]]
        negatives = found.negatives[image, found.negatives_used[image]]
        assert (labels[image, positives] == 1).all()
        assert (labels[image, negatives] == 0).all()
        assert len(positives.unique()) == len(positives)
        assert len(negatives.unique()) == len(negatives)
    assert torch.equal(found.objects, found.positives)
    assert found.positives[0].max() > 200  # not the first ones
    again = sample_windows(labels, objects, RULES)
    assert not torch.equal(found.positives[0], again.positives[0])


def test_a_map_of_few_windows():
    labels = torch.tensor([[1, 0, 0, -1, 0, 1]])
    found = sample_windows(labels, labels, RULES)
    assert found.positives_used.sum() == 2
    assert found.negatives_used.sum() == 3


def instances_of(masks, polygons=False):
    instances = Instances(tuple(masks.shape[-2:]))
    instances.gt_boxes = BitMasks(masks).get_bounding_boxes() if len(masks) else Boxes(torch.zeros(0, 4))
    instances.gt_masks = BitMasks(masks)
    if polygons:
        corners = [[x1, y1, x2, y1, x2, y2, x1, y2] for x1, y1, x2, y2 in instances.gt_boxes.tensor.tolist()]
        instances.gt_masks = PolygonMasks([[torch.tensor(c).double().numpy()] for c in corners])
    return instances


@pytest.mark.parametrize("kind", ["center", "share"])
@pytest.mark.parametrize("mask_size", [21, 15])
def test_mask_targets_are_those_of_the_loop(mask_size, kind):
    generator = torch.Generator().manual_seed(3)
    stride, size = 8, (14, 17)
    pictures = [torch.rand(3, 100, 131, generator=generator) < 0.5, torch.zeros(0, 112, 90, dtype=torch.bool)]
    pictures.append(torch.rand(2, 112, 136, generator=generator) < 0.5)
    positives = torch.randint(0, size[0] * size[1], (3, 6), generator=generator)
    positives[0, 0], positives[2, 1] = 0, size[0] * size[1] - 1
    objects = torch.stack([torch.arange(6) % (len(x) + 1) for x in pictures])
    used = torch.ones(3, 6, dtype=torch.bool)
    sampled = SampledWindows(positives, used, positives, used, objects)
    masks = [cell_masks(instances_of(x), size, stride, kind) for x in pictures]
    targets, inside = mask_targets(masks, sampled, mask_size)
    for image, picture in enumerate(pictures):
        for slot in range(6):
            y, x = divmod(int(positives[image, slot]), size[1])
            for i in range(mask_size):
                for j in range(mask_size):
                    row, column = y - mask_size // 2 + i, x - mask_size // 2 + j
                    on_map = 0 <= row < size[0] and 0 <= column < size[1]
                    assert bool(inside[image, slot, i, j]) == on_map
                    index = int(objects[image, slot])
                    expected = 0.0
                    if on_map and index < len(picture):
                        cell = picture[index, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
                        # Beyond the picture there is nothing.
                        expected = float(cell.sum() / 64 if kind == "share" else cell[4:5, 4:5].any())
                    assert float(targets[image, slot, i, j]) == expected


def test_polygons_and_bitmasks_give_the_same_cells():
    masks = torch.zeros(2, 90, 120, dtype=torch.bool)
    masks[0, 10:50, 20:77] = True
    masks[1, 60:85, 3:90] = True
    as_bits = cell_masks(instances_of(masks), (12, 15), 8)
    assert torch.equal(cell_masks(instances_of(masks, polygons=True), (12, 15), 8), as_bits)
    assert as_bits[0].sum() == 5 * 8  # rows 12, 20, ..., 44 and columns 20, 28, ..., 76
    assert not as_bits[2].any()


def test_corners():
    top, left = window_corners(torch.tensor([0, 25 * 30 + 7]), 30, 21)
    assert (top.tolist(), left.tolist()) == ([-10, 15], [-10, -3])


def naive_losses(objectness, logits, targets, inside, sampled):
    windows, positives, right, masks = 0, 0, 0.0, 0.0
    for image in range(len(objectness)):
        for slot, cell in enumerate(sampled.positives[image].tolist()):
            if not sampled.positives_used[image, slot]:
                continue
            windows, positives = windows + 1, positives + 1
            right -= math.log(1 / (1 + math.exp(-objectness[image, cell])))
            total, count = 0.0, 0
            for value, target, on_map in zip(
                logits[image, slot].flatten().tolist(),
                targets[image, slot].flatten().tolist(),
                inside[image, slot].flatten().tolist(),
            ):
                if on_map:
                    p = 1 / (1 + math.exp(-value))
                    total -= math.log(p if target else 1 - p)
                    count += 1
            masks += total / count
        for slot, cell in enumerate(sampled.negatives[image].tolist()):
            if sampled.negatives_used[image, slot]:
                windows += 1
                right -= math.log(1 - 1 / (1 + math.exp(-objectness[image, cell])))
    return right / max(windows, 1), masks / max(positives, 1)


@pytest.mark.parametrize("used", ["some", "no positive", "nothing"])
def test_losses_are_those_of_the_loop(used):
    generator = torch.Generator().manual_seed(1)
    objectness = torch.randn(2, 50, generator=generator, requires_grad=True)
    logits = torch.randn(2, 4, 5, 5, generator=generator, requires_grad=True)
    targets = (torch.rand(2, 4, 5, 5, generator=generator) < 0.5).float()
    inside = torch.rand(2, 4, 5, 5, generator=generator) < 0.7
    positives = torch.randint(0, 50, (2, 4), generator=generator)
    negatives = torch.randint(0, 50, (2, 9), generator=generator)
    positives_used = torch.rand(2, 4, generator=generator) < (0.6 if used == "some" else 0)
    negatives_used = torch.rand(2, 9, generator=generator) < (0 if used == "nothing" else 0.6)
    sampled = SampledWindows(positives, positives_used, negatives, negatives_used, positives)
    losses = window_losses(objectness, logits, targets, inside, sampled)
    expected = naive_losses(objectness.detach(), logits.detach(), targets, inside, sampled)
    assert losses["loss_window_objectness"].item() == pytest.approx(expected[0], rel=1e-5)
    assert losses["loss_window_mask"].item() == pytest.approx(expected[1], rel=1e-5)
    sum(losses.values()).backward()
    assert torch.isfinite(objectness.grad).all()
    assert torch.isfinite(logits.grad).all()
    assert bool(logits.grad.any()) == bool(positives_used.any())
    assert not logits.grad[~inside].any()
