"""DETR's crop against a naive version with the same random numbers; masks and boxes follow the image."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from detectron2.structures.masks import polygons_to_bitmask
from PIL import Image
from torchvision import transforms

from instseg_d2.config import check_config
from instseg_d2.data import InstanceDatasetMapper, build_augmentations
from instseg_d2.data.augmentations import (
    ColorJitter,
    QuarterTurn,
    RandomCropAroundInstance,
    RandomVerticalFlip,
    ScaleJitter,
    _QuarterTurns,
)
from instseg_d2.errors import ConfigError


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


@pytest.fixture
def rectangle(tmp_path):
    """make(rle=False, size) -> record of a black image (48 x 80) with a white rectangle, its object."""

    def make(rle=False, box=(20, 8, 52, 32), **more):
        x0, y0, x1, y1 = box
        image = np.zeros((48, 80, 3), np.uint8)
        image[y0:y1, x0:x1] = 255
        Image.fromarray(image).save(tmp_path / "image.png")
        segmentation = [[float(v) for v in (x0, y0, x1, y0, x1, y1, x0, y1)]]
        if rle:
            segmentation = mask_util.encode(np.asfortranarray(image[..., 0] > 0))
        annotation = {"segmentation": segmentation, "bbox": list(box), "bbox_mode": BoxMode.XYXY_ABS, "category_id": 2}
        record = {"file_name": str(tmp_path / "image.png"), "height": 48, "width": 80, "image_id": 1}
        return {**record, "annotations": [{**annotation, "iscrowd": 0}], **more}

    return make


def bits(instances):
    masks = instances.gt_masks
    if isinstance(masks, PolygonMasks):
        return np.stack([polygons_to_bitmask(p, *instances.image_size) for p in masks.polygons])
    return masks.tensor.numpy()


EXACT, CUT = (0.0, False), (0.07, True)


@pytest.mark.parametrize("rle", [False, True])
@pytest.mark.parametrize(
    ("key", "value", "limits"),
    [
        ("VERTICAL_FLIP", True, EXACT),
        ("ROTATION.QUARTER_TURNS", True, EXACT),
        ("ROTATION.DEGREES", 45.0, CUT),
        ("SCALE_JITTER", (0.5, 2.5), CUT),
        ("SCALE_JITTER", (0.5, 1.0), (0.07, False)),
    ],
)
def test_masks_and_boxes_follow_the_image(cfg, rectangle, rle, key, value, limits):
    tolerance, cuts = limits
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP, cfg.MODEL.BASIS_MODULE.LOSS_ON = (48,), "none", True
    section, _, name = key.rpartition(".")
    (cfg.INPUT[section] if section else cfg.INPUT)[name] = value
    mapper, shapes, places = InstanceDatasetMapper(cfg, True), set(), set()
    for seed in range(16):
        np.random.seed(seed)
        mapped = mapper(rectangle(rle))
        instances, white = mapped["instances"], mapped["image"][0].numpy() > 127
        assert isinstance(instances.gt_masks, BitMasks) == (rle or cuts)
        assert instances.image_size == white.shape == mapped["basis_sem"].shape
        (mask,), (box,) = bits(instances), instances.gt_boxes.tensor.tolist()
        image = mapped["image"][0].numpy()
        assert not np.where(mask, image < 32, image > 223).any()  # only pixels of the edge may differ
        assert (mask != white).sum() <= tolerance * mask.sum()
        assert (mask != (mapped["basis_sem"].numpy() == 3)).sum() <= tolerance * mask.sum()
        y, x = mask.nonzero()
        tight = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert np.abs(np.subtract(box, tight)).max() <= (0 if cuts or not tolerance else 1)
        shapes.add(white.shape)
        places.add((*tight, mask.sum()))
    assert max(max(shape) for shape in shapes) <= 80
    assert len(places) > (8 if tolerance else 1)
    if key == "ROTATION.QUARTER_TURNS":
        assert shapes == {(48, 80), (80, 48)}


def test_quarter_turns_of_pixels_and_points():
    """Every point lies in the same pixel before and after."""
    image = np.arange(6, dtype=np.uint8).reshape(2, 3)
    for count, expected in ((1, [[2, 5], [1, 4], [0, 3]]), (2, [[5, 4, 3], [2, 1, 0]]), (3, [[3, 0], [4, 1], [5, 2]])):
        transform = _QuarterTurns(2, 3, count)
        turned = transform.apply_image(image)
        assert turned.tolist() == expected
        centres = np.array([[x + 0.5, y + 0.5] for y in range(2) for x in range(3)])
        assert [turned[int(y), int(x)] for x, y in transform.apply_coords(centres)] == list(range(6))


def test_an_object_cut_to_less_than_a_tenth_is_dropped(cfg, rectangle):
    """The window of a third of the image lies around either object; the longer one has 150 x 12 pixels."""
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.SCALE_JITTER = (48,), "none", (3.0, 3.0)
    record = rectangle(box=(0, 10, 50, 14))
    record["annotations"] += [{**a, "category_id": 3} for a in rectangle(box=(69, 10, 71, 14))["annotations"]]
    mapper, left = InstanceDatasetMapper(cfg, True), []
    for mapper.min_visible in (0.1, 0.0):
        for seed in range(40):
            np.random.seed(seed)
            instances = mapper(record)["instances"]
            boxes = instances.gt_boxes.tensor[instances.gt_classes == 2]
            left.append(int((boxes[:, 2:] - boxes[:, :2]).prod(1).sum()))
    assert left[:40] == [area if area >= 0.1 * 150 * 12 else 0 for area in left[40:]]
    assert len({area for area in left[40:] if area < 180}) > 3
    assert len({area for area in left[40:] if 180 <= area < 900}) > 1


def test_color_jitter_is_torchvisions(cfg):
    """In the order of the channels; grey stays grey, and the masks' transform leaves labels alone."""
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    strengths = (0.4, 0.3, 0.2, 0.1)
    for image_format in ("RGB", "BGR"):
        cfg.INPUT.COLOR_JITTER.update(zip(("BRIGHTNESS", "CONTRAST", "SATURATION", "HUE"), strengths))
        cfg.INPUT.FORMAT, cfg.INPUT.RANDOM_FLIP = image_format, "none"
        *_, jitter = build_augmentations(cfg, True)
        torch.manual_seed(4)
        changed = jitter.get_transform(image).apply_image(image)
        torch.manual_seed(4)
        rgb = image if image_format == "RGB" else image[..., ::-1]
        theirs = np.asarray(transforms.ColorJitter(*strengths)(Image.fromarray(np.ascontiguousarray(rgb))))
        assert np.abs(changed.astype(int) - (theirs if image_format == "RGB" else theirs[..., ::-1])).max() <= 6
        assert np.abs(changed.astype(int) - image).mean() > 5
        grey = jitter.get_transform(image).apply_image(np.repeat(image[..., :1], 3, axis=2))
        assert (grey == grey[..., :1]).all()
        assert jitter.get_transform(image).apply_segmentation(image[..., 0]) is not None
        assert np.array_equal(jitter.get_transform(image).apply_segmentation(image[..., 0]), image[..., 0])


def test_all_of_them_in_order(detr):
    detr.INPUT.VERTICAL_FLIP = detr.INPUT.ROTATION.QUARTER_TURNS = True
    detr.INPUT.ROTATION.DEGREES, detr.INPUT.COLOR_JITTER.HUE, detr.INPUT.SCALE_JITTER = 10.0, 0.1, (0.5, 1.5)

    def kinds(**more):
        return [type(augmentation) for augmentation in build_augmentations(detr, True, **more)]

    flips = [T.RandomFlip, RandomVerticalFlip, QuarterTurn]
    assert kinds() == [*flips, T.RandomApply, T.RandomRotation, ScaleJitter, ColorJitter]
    detr.INPUT.CROP.SCHEME = "before_resize"
    assert kinds() == [RandomCropAroundInstance, T.RandomRotation, ScaleJitter, *flips, ColorJitter]
    assert kinds(mosaic=True) == kinds()
    detr.INPUT.SCALE_JITTER = detr.INPUT.MOSAIC.SCALE = (1.0, 1.0)
    assert kinds()[2] == kinds(mosaic=True)[2] == T.ResizeShortestEdge
    assert [type(a) for a in build_augmentations(detr, False)] == [T.ResizeShortestEdge]


@pytest.mark.parametrize("degrees", [0.0, 30.0])
def test_empty_corners_have_no_semantic_label(cfg, rectangle, tmp_path, degrees):
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP, cfg.INPUT.ROTATION.DEGREES = (48,), "none", degrees
    Image.fromarray(np.full((48, 80), 3, np.uint8)).save(tmp_path / "labels.png")
    np.random.seed(1)
    mapped = InstanceDatasetMapper(cfg, True)(rectangle(sem_seg_file_name=str(tmp_path / "labels.png")))
    corner = [mapped["sem_seg"][y, x].item() for y in (0, -1) for x in (0, -1)]
    assert set(mapped["sem_seg"].unique().tolist()) == ({3, 255} if degrees else {3})
    assert corner.count(255) == (4 if degrees else 0)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("INPUT.SCALE_JITTER", (0.5, 1.0), "LSJ_AUG True has its own scales .* with INPUT.SCALE_JITTER"),
        ("INPUT.MOSAIC.PROB", 0.5, "LSJ_AUG True has its own scales .* with INPUT.MOSAIC.PROB"),
        ("INPUT.ROTATION.DEGREES", 5.0, "INPUT.IS_ROTATE True and INPUT.ROTATION.DEGREES both rotate"),
    ],
)
def test_what_cannot_be_combined(cfg, key, value, message):
    cfg.LSJ_AUG = cfg.INPUT.IS_ROTATE = True
    check_config(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=message):
        check_config(cfg)
