"""DETR's crop against a naive version with the same random numbers, and when it is used."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

from instseg_d2.data import InstanceDatasetMapper, build_augmentations
from instseg_d2.data.augmentations import RandomCropAroundInstance


@pytest.fixture
def detr(cfg):
    cfg.MODEL.META_ARCHITECTURE = "SparseInst"
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "absolute_range", (384, 600)
    cfg.INPUT.MIN_SIZE_TRAIN = (64, 96, 128)
    cfg.INPUT.MAX_SIZE_TRAIN = 150
    return cfg


def resized(image, shorter, longest=None):
    height, width = image.shape[:2]
    scale = shorter / min(height, width)
    if longest is not None and max(height, width) * scale > longest:
        scale = longest / max(height, width)
    size = int(width * scale + 0.5), int(height * scale + 0.5)
    return np.asarray(Image.fromarray(image).resize(size, Image.BILINEAR))


def naive(image, crop_type):
    """Flip; half of the time resize and cut; resize: with the same random numbers."""
    if np.random.uniform(0, 1) < 0.5:
        image = image[:, ::-1]
    cut = np.random.uniform(0, 1) < 0.5
    if cut:
        image = resized(np.ascontiguousarray(image), np.random.choice((400, 500, 600)))
        height, width = image.shape[:2]
        if crop_type == "absolute_range":
            h = np.random.randint(min(384, height), min(600, height) + 1)
            w = np.random.randint(min(384, width), min(600, width) + 1)
        else:
            h, w = int(0.7 * height + 0.5), int(0.7 * width + 0.5)
        y, x = np.random.randint(height - h + 1), np.random.randint(width - w + 1)
        image = image[y : y + h, x : x + w]
    return resized(np.ascontiguousarray(image), np.random.choice((64, 96, 128)), 150), cut


@pytest.mark.parametrize(("crop_type", "size"), [("absolute_range", (384, 600)), ("relative", (0.7, 0.7))])
def test_order_and_probabilities(detr, crop_type, size):
    detr.INPUT.CROP.TYPE, detr.INPUT.CROP.SIZE = crop_type, size
    augmentations = T.AugmentationList(build_augmentations(detr, True))
    image = np.random.RandomState(0).randint(0, 256, (50, 170, 3)).astype(np.uint8)
    cuts = []
    for seed in range(40):
        np.random.seed(seed)
        expected, cut = naive(image, crop_type)
        np.random.seed(seed)
        sample = T.AugInput(image)
        augmentations(sample)
        assert np.array_equal(sample.image, expected)
        cuts.append(cut)
    assert 10 < sum(cuts) < 30


def test_the_scheme_is_the_methods_unless_asked(detr):
    def first(**crop):
        detr.INPUT.CROP.update(crop)
        return [type(augmentation) for augmentation in build_augmentations(detr, True)]

    assert first() == [T.RandomFlip, T.RandomApply, T.ResizeShortestEdge]
    assert first(SCHEME="before_resize") == [RandomCropAroundInstance, T.ResizeShortestEdge, T.RandomFlip]
    detr.MODEL.META_ARCHITECTURE = "BlendMask"
    assert first(SCHEME="") == [RandomCropAroundInstance, T.ResizeShortestEdge, T.RandomFlip]
    assert first(SCHEME="detr") == [T.RandomFlip, T.RandomApply, T.ResizeShortestEdge]
    assert first(ENABLED=False) == [T.ResizeShortestEdge, T.RandomFlip]


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_what_the_crop_cut_off_is_gone(detr, tmp_path, mask_format):
    """Two objects at the ends of a long image: boxes fit the cropped masks, and empty objects are dropped."""
    detr.INPUT.MASK_FORMAT = mask_format
    detr.MODEL.MASK_ON = False  # SparseInst learns from masks all the same
    path = tmp_path / "image.png"
    Image.fromarray(np.zeros((40, 200, 3), np.uint8)).save(path)
    annotations = [
        {"segmentation": [[x, 5.0, x + 9, 5.0, x + 9, 30.0, x, 30.0]], "bbox": [x, 5.0, x + 9, 30.0],
         "bbox_mode": BoxMode.XYXY_ABS, "category_id": i, "iscrowd": 0}
        for i, x in enumerate((0.0, 191.0))
    ]  # fmt: skip
    mapper, counts = InstanceDatasetMapper(detr, True), []
    for seed in range(20):
        np.random.seed(seed)
        mapped = mapper({"file_name": str(path), "height": 40, "width": 200, "annotations": annotations})
        instances = mapped["instances"]
        assert instances.image_size == mapped["image"].shape[1:]
        masks = instances.gt_masks.tensor
        for mask, box in zip(masks, instances.gt_boxes.tensor):
            y, x = mask.nonzero(as_tuple=True)
            assert torch.equal(box, torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float())
        counts.append(len(instances))
    assert {0, 2} <= set(counts) <= {0, 1, 2}
