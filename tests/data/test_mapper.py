import copy
import os

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image

from instseg_d2.data import InstanceDatasetMapper, build_augmentations
from instseg_d2.data.augmentations import RandomCropAroundInstance
from instseg_d2.errors import DatasetError, ImageError

SQUARE = [[5.0, 5.0, 15.0, 5.0, 15.0, 15.0, 5.0, 15.0]]


def annotation(segmentation=SQUARE, box=(5, 5, 10, 10), category=0, crowd=0):
    return {"segmentation": segmentation, "bbox": list(box), "bbox_mode": BoxMode.XYWH_ABS, "category_id": category,
            "iscrowd": crowd}  # fmt: skip


def rle(height, width, window):
    mask = np.zeros((height, width), np.uint8, order="F")
    mask[window] = 1
    return mask_util.encode(mask)


@pytest.fixture
def record(tmp_path):
    """make(annotations, ...) -> data set dict of an image of 40 x 60 pixels (height x width), which are numbered."""
    path = tmp_path / "image.png"
    y, x = np.mgrid[:40, :60].astype(np.uint8)
    Image.fromarray(np.stack([y, x, y * 0 + 7], axis=2)).save(path)

    def make(annotations=None, **values):
        result = {"file_name": str(path), "height": 40, "width": 60, "image_id": 1, **values}
        if annotations is not None:
            result["annotations"] = annotations
        return result

    return make


@pytest.fixture
def plain(cfg):
    """Neither resized (40 x 60 stays) nor flipped; RGB."""
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.MIN_SIZE_TEST = 40
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.FORMAT = "RGB"
    return cfg


def boxes_of(masks):
    """Tight boxes of bitmasks, by a loop."""
    result = []
    for mask in masks:
        y, x = mask.nonzero(as_tuple=True)
        result.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    return torch.tensor(result, dtype=torch.float32)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_same_as_detectron2_where_it_can_do_the_same(shapes, cfg, mask_format):
    cfg.INPUT.MASK_FORMAT = mask_format
    ours, theirs = InstanceDatasetMapper(cfg, True), DatasetMapper(cfg, True)
    compared = 0
    for i, sample in enumerate(DatasetCatalog.get(shapes)):
        # Detectron2 refuses mixed masks as polygons and leaves gt_masks out of images without objects.
        mixed = any(isinstance(a["segmentation"], dict) for a in sample["annotations"])
        if not sample["annotations"] or (mixed and mask_format == "polygon"):
            continue
        np.random.seed(i)
        a = ours(sample)
        np.random.seed(i)
        b = theirs(sample)
        assert set(a) == set(b)
        assert torch.equal(a["image"], b["image"])
        a, b = a["instances"], b["instances"]
        assert a.image_size == b.image_size
        assert torch.equal(a.gt_boxes.tensor, b.gt_boxes.tensor)
        assert torch.equal(a.gt_classes, b.gt_classes)
        if mask_format == "bitmask":
            assert torch.equal(a.gt_masks.tensor, b.gt_masks.tensor)
        else:
            assert isinstance(a.gt_masks, PolygonMasks)
            for x, y in zip(a.gt_masks.polygons, b.gt_masks.polygons):
                assert all(np.array_equal(p, q) for p, q in zip(x, y))
        compared += 1
    assert compared >= (3 if mask_format == "polygon" else 20)


def test_mixed_masks_become_bitmasks(record, plain):
    sample = record([annotation(), annotation(rle(40, 60, np.s_[2:9, 30:50]), (30, 2, 20, 7), category=3)])
    instances = InstanceDatasetMapper(plain, True)(sample)["instances"]
    assert isinstance(instances.gt_masks, BitMasks)
    expected = torch.zeros(2, 40, 60, dtype=torch.bool)
    expected[0, 5:15, 5:15] = True
    expected[1, 2:9, 30:50] = True
    assert torch.equal(instances.gt_masks.tensor, expected)
    assert instances.gt_classes.tolist() == [0, 3]
    assert instances.gt_classes.dtype == torch.int64
    assert instances.gt_boxes.tensor.tolist() == [[5, 5, 15, 15], [30, 2, 50, 9]]


def test_uncompressed_rle_and_arrays(record, plain):
    array = np.zeros((40, 60), bool)
    array[2:9, 30:50] = True
    runs = {"size": [40, 60], "counts": [0, 40, 59 * 40]}  # the first column
    sample = record([annotation(array, (30, 2, 20, 7)), annotation(runs, (0, 0, 1, 40))])
    masks = InstanceDatasetMapper(plain, True)(sample)["instances"].gt_masks.tensor
    assert np.array_equal(masks[0].numpy(), array)
    assert masks[1][:, 0].all()
    assert masks[1].sum() == 40


def test_fields_types_and_the_input_stays(record, plain):
    sample = record([annotation(), annotation(rle(40, 60, np.s_[:5, :5]), (0, 0, 5, 5), crowd=1)])
    before = copy.deepcopy(sample)
    plain.MODEL.BASIS_MODULE.LOSS_ON = True
    mapped = InstanceDatasetMapper(plain, True)(sample)
    assert sample == before
    assert set(mapped) == {"file_name", "height", "width", "image_id", "image", "instances", "basis_sem"}
    assert mapped["image"].dtype == torch.uint8
    assert mapped["image"].is_contiguous()
    assert mapped["image"].shape == (3, 40, 60)
    assert mapped["image"][:, 4, 9].tolist() == [4, 9, 7]
    assert len(mapped["instances"]) == 1  # without the crowd
    plain.INPUT.FORMAT = "BGR"
    assert InstanceDatasetMapper(plain, True)(sample)["image"][:, 4, 9].tolist() == [7, 9, 4]


def test_inference(record, plain):
    plain.INPUT.MIN_SIZE_TEST = 80
    plain.MODEL.BASIS_MODULE.LOSS_ON = True
    plain.INPUT.CROP.ENABLED = True
    sample = record([annotation()])
    sample.pop("height"), sample.pop("width")
    mapped = InstanceDatasetMapper(plain, False)(sample)
    assert set(mapped) == {"file_name", "height", "width", "image_id", "image"}
    assert (mapped["height"], mapped["width"]) == (40, 60)
    assert mapped["image"].shape == (3, 80, 120)


@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
@pytest.mark.parametrize("crop", [False, True])
def test_image_without_objects(record, plain, mask_format, crop):
    plain.INPUT.MASK_FORMAT = mask_format
    plain.INPUT.CROP.ENABLED = crop
    plain.MODEL.BASIS_MODULE.LOSS_ON = True
    only_crowd = [annotation(crowd=1)]
    for annotations in ([], only_crowd):
        mapped = InstanceDatasetMapper(plain, True)(record(annotations))
        instances = mapped["instances"]
        assert len(instances) == len(instances.gt_masks) == len(instances.gt_boxes) == len(instances.gt_classes) == 0
        assert instances.gt_boxes.tensor.shape == (0, 4)
        assert mapped["basis_sem"].shape == mapped["image"].shape[1:]
        assert bool(mapped["basis_sem"].any()) == bool(annotations)


def test_empty_boxes_and_masks_are_filtered(record, plain):
    annotations = [
        annotation(box=(5, 5, 0, 10)),
        annotation([[1.0, 1.0, 2.0, 2.0]]),
        annotation(rle(40, 60, np.s_[:0, :0])),
        annotation(category=4),
    ]
    for mask_format in ("polygon", "bitmask"):
        plain.INPUT.MASK_FORMAT = mask_format
        assert InstanceDatasetMapper(plain, True)(record(annotations))["instances"].gt_classes.tolist() == [4]


def naive_semantic(annotations, height, width):
    canvas = [[0] * width for _ in range(height)]
    for a in annotations:
        segmentation = a["segmentation"]
        if isinstance(segmentation, list):
            mask = np.zeros((height, width), np.uint8)
            for part in mask_util.frPyObjects(segmentation, height, width):
                mask |= mask_util.decode(part)
        else:
            mask = mask_util.decode(segmentation)
        for y in range(height):
            for x in range(width):
                if mask[y, x]:
                    canvas[y][x] = a["category_id"] + 1
    return np.array(canvas)


def test_basis_sem_against_naive_painting(shapes, cfg):
    cfg.MODEL.BASIS_MODULE.LOSS_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (97,)
    mapper = InstanceDatasetMapper(cfg, True)
    flips = set()
    for i, sample in enumerate(DatasetCatalog.get(shapes)[:6]):
        sample["annotations"] = [dict(a, iscrowd=j % 2) for j, a in enumerate(sample["annotations"])]
        np.random.seed(i)
        mapped = mapper(sample)
        label = naive_semantic(sample["annotations"], sample["height"], sample["width"])
        height, width = mapped["image"].shape[1:]
        expected = np.asarray(Image.fromarray(label.astype(np.uint8)).resize((width, height), Image.NEAREST))
        assert mapped["basis_sem"].dtype == torch.int64
        same = np.array_equal(mapped["basis_sem"], expected)
        flipped = np.array_equal(mapped["basis_sem"], expected[:, ::-1])
        assert same or flipped
        flips.add(flipped)
    assert flips == {True, False}


def test_basis_sem_order_and_many_classes(record, plain):
    plain.MODEL.BASIS_MODULE.LOSS_ON = True
    under = annotation(rle(40, 60, np.s_[0:10, 0:10]), (0, 0, 10, 10), category=1202)
    over = annotation(rle(40, 60, np.s_[5:10, 5:20]), (5, 5, 15, 5), category=2, crowd=1)
    label = InstanceDatasetMapper(plain, True)(record([under, over]))["basis_sem"]
    expected = torch.zeros(40, 60, dtype=torch.int64)
    expected[0:10, 0:10] = 1203
    expected[5:10, 5:20] = 3
    assert torch.equal(label, expected)
    # With the default config there is none, and the method does not need one.
    plain.MODEL.BASIS_MODULE.LOSS_ON = False
    assert "basis_sem" not in InstanceDatasetMapper(plain, True)(record([under, over]))


@pytest.mark.parametrize("rotate", [False, True])
def test_crop_and_rotation_keep_boxes_tight_and_everything_aligned(shapes, cfg, rotate):
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = "relative_range", [0.4, 0.4]
    cfg.INPUT.IS_ROTATE = rotate
    cfg.MODEL.BASIS_MODULE.LOSS_ON = True
    mapper = InstanceDatasetMapper(cfg, True)
    fewer = wrong = pixels = 0
    for i, sample in enumerate(DatasetCatalog.get(shapes)):
        np.random.seed(i)
        mapped = mapper(sample)
        instances = mapped["instances"]
        assert instances.image_size == mapped["image"].shape[1:] == mapped["basis_sem"].shape
        fewer += len(sample["annotations"]) - len(instances)
        masks = instances.gt_masks.tensor
        assert masks.shape == (len(instances), *instances.image_size)
        if len(instances):
            assert torch.equal(instances.gt_boxes.tensor, boxes_of(masks))
        # Visible masks of this set hardly overlap: both ground truths must say the same but for edges.
        label = torch.zeros_like(mapped["basis_sem"])
        for mask, cls in zip(masks, instances.gt_classes):
            label[mask] = cls + 1
        wrong += int((label != mapped["basis_sem"]).sum())
        pixels += label.numel()
    assert fewer > 20
    assert wrong < 0.01 * pixels


def test_crop_cuts_masks_exactly(record, plain):
    """A crop without resizing: the masks are windows of the whole masks, in every notation."""
    plain.INPUT.CROP.ENABLED = True
    plain.INPUT.CROP.TYPE, plain.INPUT.CROP.SIZE = "absolute", [16, 20]
    plain.INPUT.MIN_SIZE_TRAIN = (16,)
    window = rle(40, 60, np.s_[10:35, 22:50])
    sample = record([annotation(), annotation(window, (22, 10, 28, 25), category=1)])
    whole = np.zeros((2, 40, 60), bool)
    whole[0, 5:15, 5:15] = True
    whole[1, 10:35, 22:50] = True
    seen = set()
    for seed in range(30):
        np.random.seed(seed)
        mapped = InstanceDatasetMapper(plain, True)(sample)
        y, x = mapped["image"][:2, 0, 0].tolist()  # the image tells where it was cut
        expected = whole[:, y : y + 16, x : x + 20]
        instances = mapped["instances"]
        assert instances.gt_classes.tolist() == [i for i in range(2) if expected[i].any()]
        assert np.array_equal(instances.gt_masks.tensor, expected[[i for i in range(2) if expected[i].any()]])
        seen.add(len(instances))
    assert 1 in seen


def test_a_rotated_crop_brings_nothing_back(record, plain):
    plain.INPUT.CROP.ENABLED = True
    plain.INPUT.CROP.TYPE, plain.INPUT.CROP.SIZE = "absolute", [20, 30]
    plain.INPUT.IS_ROTATE = True
    everything = [[0.0, 0.0, 60.0, 0.0, 60.0, 40.0, 0.0, 40.0]]
    rotated = 0
    for seed in range(10):
        np.random.seed(seed)
        mapped = InstanceDatasetMapper(plain, True)(record([annotation(everything, (0, 0, 60, 40))]))
        black = (mapped["image"] == 0).all(0)  # outside of the rotated crop; the third channel is 7 inside
        mask = mapped["instances"].gt_masks.tensor[0]
        rotated += bool(black.any())
        assert (mask & black).sum() <= 0.03 * mask.sum()
    assert rotated


@pytest.mark.parametrize("crop_type", ["relative_range", "absolute_range", "relative", "absolute"])
def test_the_window_holds_the_centre_of_an_object(crop_type):
    size = [0.3, 0.5] if crop_type.startswith("relative") else [10, 20]
    augmentation = RandomCropAroundInstance(crop_type, size)
    image = np.zeros((40, 60, 3), np.uint8)
    boxes = np.array([[0.0, 0.0, 3.0, 1.0], [52.0, 30.0, 60.0, 40.0], [20.5, 10.0, 31.0, 20.5], [-8, -8, 1, 1]])
    centres = ((boxes[:, :2] + boxes[:, 2:]) / 2).clip(0, (60, 40))
    chosen = np.zeros(4, bool)
    for seed in range(200):
        np.random.seed(seed)
        t = augmentation.get_transform(image, boxes)
        assert t.x0 >= 0
        assert t.y0 >= 0
        assert t.x0 + t.w <= 60
        assert t.y0 + t.h <= 40
        inside = ((centres >= (t.x0, t.y0)) & (centres <= (t.x0 + t.w, t.y0 + t.h))).all(1)
        assert inside.any()
        chosen |= inside
    assert chosen.all()
    for boxes in (None, np.zeros((0, 4))):
        t = augmentation.get_transform(image, boxes)
        assert t.x0 + t.w <= 60
        assert t.y0 + t.h <= 40


def test_windows_around_an_object_are_uniform():
    augmentation = RandomCropAroundInstance("absolute", [4, 4])
    np.random.seed(0)
    image = np.zeros((20, 20, 3), np.uint8)
    starts = [augmentation.get_transform(image, np.array([[9.0, 9.0, 10.0, 10.0]])).x0 for _ in range(2000)]
    # The centre is 9.5: windows from 6 (ends at 10) to 9.
    values, counts = np.unique(starts, return_counts=True)
    assert values.tolist() == [6, 7, 8, 9]
    assert counts.min() > 400


def names(cfg, is_train=True):
    return [type(a).__name__ for a in build_augmentations(cfg, is_train)]


def test_order_and_switches_of_the_augmentations(cfg):
    assert names(cfg) == ["ResizeShortestEdge", "RandomFlip"]
    assert names(cfg, False) == ["ResizeShortestEdge"]
    cfg.INPUT.HFLIP_TRAIN = False
    assert names(cfg) == ["ResizeShortestEdge"]
    cfg.INPUT.RANDOM_FLIP = "vertical"
    assert build_augmentations(cfg, True)[-1].vertical
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.IS_ROTATE = True
    assert names(cfg) == ["RandomCropAroundInstance", "RandomApply", "ResizeShortestEdge", "RandomVerticalFlip"]
    assert names(cfg, False) == ["ResizeShortestEdge"]
    cfg.INPUT.CROP.CROP_INSTANCE = False
    assert type(build_augmentations(cfg, True)[0]) is T.RandomCrop

    cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "range"
    np.random.seed(0)
    sizes = {build_augmentations(cfg, True)[2].get_transform(np.zeros((100, 100, 3))).new_h for _ in range(200)}
    assert min(sizes) == 160
    assert max(sizes) == 192
    assert len(sizes) > 25


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"mask_format": "rle"}, "mask_format must be polygon or bitmask; got 'rle'"),
        ({"image_format": "L"}, "image_format must be BGR or RGB; got 'L'"),
    ],
)
def test_arguments_that_do_not_fit(argument, message):
    with pytest.raises(ValueError, match=message):
        InstanceDatasetMapper(True, augmentations=[], **argument)


def test_samples_that_do_not_fit(record, plain):
    mapper = InstanceDatasetMapper(plain, True)
    with pytest.raises(ImageError, match=r"image\.png has 60 x 40 pixels .* but its annotation says 60 x 41"):
        mapper(record([], height=41))
    with pytest.raises(ImageError, match=r"none\.png: no such image file"):
        mapper(record([], file_name="none.png"))
    without = annotation()
    without.pop("segmentation")
    with pytest.raises(DatasetError, match=r"image\.png: an annotation has no mask, but MODEL.MASK_ON"):
        mapper(record([without]))
    with pytest.raises(DatasetError, match=r"image\.png: a mask is neither .* 40 x 60 pixels"):
        mapper(record([annotation(rle(60, 40, np.s_[:5, :5]))]))
    plain.MODEL.MASK_ON = False
    instances = InstanceDatasetMapper(plain, True)(record([without]))["instances"]
    assert len(instances) == 1
    assert not instances.has("gt_masks")


def test_semantic_files(record, plain, tmp_path):
    labels = np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    mapped = InstanceDatasetMapper(plain, True)(record([], sem_seg_file_name=str(tmp_path / "labels.png")))
    assert np.array_equal(mapped["sem_seg"], labels)
    assert mapped["sem_seg"].dtype == torch.int64


@pytest.mark.skipif("INSTSEG_DATASETS" not in os.environ, reason="INSTSEG_DATASETS is not set")
@pytest.mark.parametrize("name", ["coco_open_train", "coco_open_val", "coco_open_super12_train", "nuclei_dsb2018_val"])
def test_real_sets(cfg, name):
    cfg.MODEL.BASIS_MODULE.LOSS_ON = True
    mapper = InstanceDatasetMapper(cfg, True)
    kinds = set()
    for sample in DatasetCatalog.get(name)[:20]:
        mapped = mapper(sample)
        instances = mapped["instances"]
        kinds.add(type(instances.gt_masks))
        assert len(instances) <= len(sample["annotations"])
        assert int(mapped["basis_sem"].max()) <= 80
        if isinstance(instances.gt_masks, BitMasks):
            # Boxes of the file and masks agree.
            tight = boxes_of(instances.gt_masks.tensor)
            assert (tight - instances.gt_boxes.tensor).abs().mean() < 1.5
    assert kinds <= {BitMasks, PolygonMasks}
    assert ("nuclei" in name) == (PolygonMasks not in kinds)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("size", "becomes"),
    [
        ((5000, 4), "none"),
        ((4, 5000), "none"),
        ((640, 2), "320 x 1"),
        ((2, 640), "1 x 320"),
        ((640, 4), ""),
        ((1, 1), ""),
    ],
)
def test_images_too_thin_to_be_resized(cfg, tmp_path, training, size, becomes):
    """A longest side of 320."""
    Image.new("RGB", size).save(tmp_path / "thin.png")
    record = {"file_name": str(tmp_path / "thin.png"), "image_id": 1, "width": size[0], "height": size[1]}
    mapper = InstanceDatasetMapper(cfg, training)
    if becomes:
        message = rf"thin\.png is too thin to resize: its {size[0]} x {size[1]} pixels become {becomes}\."
        with pytest.raises(ImageError, match=message):
            mapper(record)
    else:
        assert min(mapper(record)["image"].shape) > 1


def test_many_masks_that_overlap(record, plain):
    """300 RLE masks at a larger size: each is what it is alone."""
    plain.INPUT.MIN_SIZE_TRAIN = (61,)
    generator = np.random.default_rng(1)
    corners = generator.integers(0, (30, 50), (300, 2))
    annotations = [annotation(rle(40, 60, np.s_[y : y + 9, x : x + 7]), (x, y, 7, 9)) for y, x in corners]
    mapper = InstanceDatasetMapper(plain, True)
    masks = mapper(record(annotations))["instances"].gt_masks.tensor
    assert len(masks) == 300
    for i in (0, 1, 150, 298, 299):
        assert torch.equal(mapper(record([annotations[i]]))["instances"].gt_masks.tensor[0], masks[i])
    y, x = corners[299]
    expected = np.zeros((40, 60), np.uint8)
    expected[y : y + 9, x : x + 7] = 1
    assert np.array_equal(masks[299], np.asarray(Image.fromarray(expected).resize((92, 61), Image.NEAREST)))
