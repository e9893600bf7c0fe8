"""Masks cropped to their boxes as by Detectron2, and the stream of masks for a fit."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from torchvision.ops import roi_align

from instseg_d2.data.segmentations import crop_annotation
from instseg_d2.data.training_masks import TrainingMasks
from instseg_d2.errors import DatasetError
from tests.data.records import annotation, record, square


def test_crops_are_detectron2s():
    polygon = [[10.0, 12.0, 40.5, 9.0, 70.0, 50.0, 20.0, 55.0]]
    box = [9.5, 8.0, 71.0, 56.0]
    found = crop_annotation(annotation(polygon, box), 60, 80, 28)
    expected = PolygonMasks([polygon]).crop_and_resize(torch.tensor([box]), 28)[0].numpy()
    np.testing.assert_array_equal(found, expected)
    xywh = {**annotation(polygon, [9.5, 8.0, 61.5, 48.0]), "bbox_mode": BoxMode.XYWH_ABS}
    np.testing.assert_array_equal(crop_annotation(xywh, 60, 80, 28), expected)

    bitmask = np.random.default_rng(0).random((60, 80)) > 0.4
    rle = mask_util.encode(np.asfortranarray(bitmask.astype(np.uint8)))
    full = torch.tensor(bitmask)[None]
    for box in ([9.5, 8.25, 71.0, 56.0], [0.0, 0.0, 80.0, 60.0], [30.2, 40.7, 33.9, 43.1], [70.5, 50.0, 80.0, 60.0]):
        for size in (28, 112):
            found = crop_annotation(annotation(rle, box), 60, 80, size)
            expected = BitMasks(full).crop_and_resize(torch.tensor([box]), size)[0].numpy()
            value = roi_align(full[None].float(), torch.tensor([[0.0, *box]]), size, 1.0, 0, True)[0, 0].numpy()
            tie = np.abs(value - 0.5) < 1e-4  # rounding decides
            assert tie.mean() < 0.05
            np.testing.assert_array_equal(found[~tie], expected[~tie])
    beyond = crop_annotation(annotation(rle, [70.5, 50.0, 90.0, 75.0]), 60, 80, 28)  # clipped to the image
    np.testing.assert_array_equal(beyond, crop_annotation(annotation(rle, [70.5, 50.0, 80.0, 60.0]), 60, 80, 28))


def test_training_masks_leave_out_what_has_none():
    empty = annotation(mask_util.encode(np.zeros((60, 80), np.uint8, order="F")), [3, 3, 20, 20])
    records = [record(square(5, 5, 20), square(1, 1, 40, iscrowd=1), empty), record(), record(square(2, 3, 40))]
    masks = TrainingMasks(records, 28)
    assert len(masks) == 3
    (batch,) = masks
    assert (batch.shape, batch.dtype) == ((2, 28, 28), np.uint8)
    assert batch.all()
    assert np.array_equal(next(iter(masks)), batch)  # once more
    assert sum(map(len, TrainingMasks(records, 28, min_area=32**2))) == 1
    assert [len(b) for b in TrainingMasks([record(*[square(5, 5, 20)] * 7)], 28, batch_size=3)] == [3, 3, 1]
    many = [record(square(i, 5, 10 + i)) for i in range(30)]
    drawn = TrainingMasks(many, 28, max_masks=9)
    assert len(drawn) == sum(map(len, drawn)) == 9
    assert (np.diff(drawn._pairs[:, 0]) > 0).all()
    assert [tuple(p) for p in TrainingMasks(many, 28, max_masks=9)._pairs] == [tuple(p) for p in drawn._pairs]
    with pytest.raises(DatasetError, match=r"a\.png: an annotation has no mask"):
        list(TrainingMasks([record({"bbox": [0, 0, 3, 3], "bbox_mode": BoxMode.XYXY_ABS})], 28))
