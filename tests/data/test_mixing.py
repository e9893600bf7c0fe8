"""Copy-paste and mosaic: pixels and masks derived by hand, and when they are used."""

import itertools

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BitMasks, Boxes, BoxMode, Instances
from PIL import Image

from instseg_d2.config import check_config
from instseg_d2.data import build_train_loader
from instseg_d2.data.mixing import GREY, MixingMapper, mixed_batches, paste, unmixed
from instseg_d2.errors import ConfigError


def window(height, width, rows, columns):
    mask = np.zeros((height, width), bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def sample(value, masks, classes, size=(6, 8)):
    """A mapped image of one colour, with the boxes [0, 0, 1, 1], which are wrong, and with basis_sem painted 99."""
    masks = torch.from_numpy(np.stack(masks)) if masks else torch.zeros((0, *size), dtype=torch.bool)
    boxes = Boxes(torch.tensor([[0.0, 0, 1, 1]] * len(masks)).reshape(-1, 4))
    instances = Instances(size, gt_boxes=boxes, gt_classes=torch.tensor(classes, dtype=torch.int64))
    instances.gt_masks = BitMasks(masks)
    return {
        "image": torch.full((3, *size), value, dtype=torch.uint8),
        "instances": instances,
        "basis_sem": torch.full(size, 99),
    }


def test_a_pasted_object_takes_its_pixels_from_those_below():
    below = [
        window(6, 8, (0, 4), (2, 4)),  # 8 pixels, 4 of which are covered
        window(6, 8, (3, 6), (4, 8)),  # covered
        window(6, 8, (0, 1), (5, 8)),  # untouched
        window(6, 8, (1, 6), (3, 7)),  # 20 pixels: the 4 of its first row remain, 20 %
    ]
    under = sample(10, below, [0, 1, 2, 3])
    over = sample(200, [window(6, 8, (2, 6), (2, 8)), window(6, 8, (2, 3), (2, 4))], [5, 6])
    paste(under, over)
    cover = window(6, 8, (2, 6), (2, 8))
    assert np.array_equal(under["image"], np.broadcast_to(np.where(cover, 200, 10), (3, 6, 8)))
    instances = under["instances"]
    assert instances.gt_classes.tolist() == [0, 2, 3, 5, 6]
    expected = [
        window(6, 8, (0, 2), (2, 4)), below[2], window(6, 8, (1, 2), (3, 7)), cover, window(6, 8, (2, 3), (2, 4)),
    ]  # fmt: skip
    assert np.array_equal(instances.gt_masks.tensor, expected)
    # Tight where a mask changed or is new; the object that was not touched keeps the box it had.
    assert instances.gt_boxes.tensor.tolist() == [
        [2, 0, 4, 2], [0, 0, 1, 1], [3, 1, 7, 2], [2, 2, 8, 6], [2, 2, 4, 3],
    ]  # fmt: skip
    semantic = np.where(cover, 6, 99)
    semantic[2, 2:4] = 7  # the later object lies on top
    assert np.array_equal(under["basis_sem"], semantic)


@pytest.mark.parametrize(("rest", "kept"), [(9, False), (10, True)])
def test_objects_of_which_less_than_a_tenth_is_left_are_dropped(rest, kept):
    under = sample(10, [np.ones((10, 10), bool)], [3], (10, 10))
    covered = np.arange(100).reshape(10, 10) >= rest
    paste(under, sample(200, [covered], [4], (10, 10)))
    assert under["instances"].gt_classes.tolist() == ([3, 4] if kept else [4])
    assert under["instances"].gt_masks.tensor.sum((1, 2)).tolist() == ([rest] if kept else []) + [100 - rest]


def test_images_without_objects():
    for masks, classes in (([], []), ([np.zeros((6, 8), bool)], [1])):
        under, over = sample(10, [window(6, 8, (0, 4), (2, 4))], [0]), sample(200, masks, classes)
        paste(under, over)
        assert (under["image"] == 10).all()
        assert under["instances"].gt_classes.tolist() == [0]
    under = sample(10, [], [])
    paste(under, sample(200, [window(6, 8, (0, 4), (2, 4))], [1]))
    assert under["instances"].gt_classes.tolist() == [1]
    assert under["instances"].gt_boxes.tensor.tolist() == [[2, 0, 4, 4]]


@pytest.mark.parametrize("size", [(3, 5), (9, 20), (9, 5), (40, 40)])
def test_images_of_other_sizes(size):
    """The object is the upper left quarter of the pasted image. It moves with its pixels, and the edge cuts it off."""
    mask = window(*size, (0, size[0] // 2 + 1), (0, size[1] // 2 + 1))
    over = sample(200, [mask], [1], size)
    over["image"][:] = torch.arange(size[0] * size[1]).reshape(size) % 200 + 20
    places = set()
    for seed in range(60):
        np.random.seed(seed)
        under = sample(10, [], [])
        paste(under, over)
        pasted = (under["image"][0] != 10).numpy()
        masks = under["instances"].gt_masks.tensor.numpy()
        assert np.array_equal(masks.any(0), pasted)
        assert len(masks) == (pasted.sum() >= 0.1 * mask.sum() and pasted.any())
        if len(masks):
            y, x = np.nonzero(pasted)
            corner = int(under["image"][0, y[0], x[0]])
            place = divmod(corner - 20, size[1]) if size[0] * size[1] <= 180 else None
            if place:
                rows, columns = y[0] - place[0], x[0] - place[1]
                assert min(0, 6 - size[0]) <= rows <= max(0, 6 - size[0])
                assert min(0, 8 - size[1]) <= columns <= max(0, 8 - size[1])
                places.add((rows, columns))
    if size != (40, 40):
        assert len(places) > 3


@pytest.fixture
def records(tmp_path):
    """
    make(count, **values) -> records of images of 24 x 32 pixels: image i has colour 10 i + 5, and one object of class i
    and colour 10 i + 105, in rows 4 to 19 and columns 2 to 17, in one of three notations.
    """

    def make(count=4, notation=None, deep=False, **values):
        made = []
        for i in range(count):
            mask = window(24, 32, (4, 20), (2, 18))
            pixels = np.where(mask, 10 * i + 105, 10 * i + 5).astype(np.uint16 if deep else np.uint8)
            path = tmp_path / f"{i}{'_deep' * deep}.png"
            Image.fromarray(pixels * 16 if deep else pixels).save(path)
            kind = notation or ("polygon", "rle", "array")[i % 3]
            segmentation = {
                "polygon": [[2.0, 4.0, 18.0, 4.0, 18.0, 20.0, 2.0, 20.0]],
                "rle": mask_util.encode(np.asfortranarray(mask.astype(np.uint8))),
                "array": mask,
            }[kind]
            annotation = {"segmentation": segmentation, "bbox": [2, 4, 16, 16], "bbox_mode": BoxMode.XYWH_ABS}
            annotation.update({"category_id": i, "iscrowd": 0, **values})
            made.append({"file_name": str(path), "height": 24, "width": 32, "image_id": i, "annotations": [annotation]})
        return made

    return make


@pytest.fixture
def still(cfg):
    """Neither resized nor flipped; the mosaics' images too."""
    cfg.INPUT.MIN_SIZE_TRAIN = (0,)
    cfg.INPUT.RANDOM_FLIP = "none"
    cfg.INPUT.MOSAIC.SCALE = (1.0, 1.0)
    cfg.MODEL.BASIS_MODULE.LOSS_ON = True
    return cfg


def check_agreement(mapped):
    """Image, masks, boxes, classes and basis_sem say the same."""
    image, instances = mapped["image"][0].numpy(), mapped["instances"]
    objects = (image >= 105) & (image != GREY)
    assert np.array_equal(instances.gt_masks.tensor.any(0), objects)
    semantic = np.zeros_like(image)
    for mask, box, label in zip(instances.gt_masks.tensor.numpy(), instances.gt_boxes.tensor, instances.gt_classes):
        assert (image[mask] == 105 + 10 * int(label)).all()
        y, x = mask.nonzero()
        assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        semantic[mask] = label + 1
    assert np.array_equal(mapped["basis_sem"], semantic)
    assert mapped["image"].shape[1:] == instances.image_size == mapped["basis_sem"].shape


@pytest.mark.parametrize(("copy_paste", "mosaic"), [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_everything_agrees_in_every_notation(records, still, copy_paste, mosaic):
    still.INPUT.COPY_PASTE, still.INPUT.MOSAIC.PROB = copy_paste, mosaic
    mapper, made, seen = MixingMapper(still), records(), set()
    same = {notation: records(notation=notation) for notation in ("polygon", "rle")}
    for seed in range(8):
        results = []
        for given in (made, same["polygon"], same["rle"]):
            np.random.seed(seed)
            results.append(mapper.mixed(given[0], lambda: given[np.random.randint(1, 4)]))  # noqa: B023
        mapped = results[0]
        check_agreement(mapped)
        assert (mapped["file_name"], mapped["image_id"]) == (made[0]["file_name"], 0)
        for other in results[1:]:
            assert torch.equal(mapped["image"], other["image"])
            assert torch.equal(mapped["instances"].gt_masks.tensor, other["instances"].gt_masks.tensor)
        assert isinstance(mapped["instances"].gt_masks, BitMasks)
        assert mapped["image"].shape == (3, 24, 32)
        seen.update(mapped["instances"].gt_classes.tolist())
    assert seen == ({1, 2, 3} if (copy_paste, mosaic) == (1, 0) else {0, 1, 2, 3})


def test_the_images_of_a_mosaic_meet_at_one_point(records, still):
    still.INPUT.MOSAIC.PROB = 1.0
    mapper, made, centres = MixingMapper(still), records(), set()
    for seed in range(15):
        np.random.seed(seed)
        others = iter(made[1:])
        mapped = mapper.mixed(made[0], lambda: next(others))  # noqa: B023
        numbers = (mapped["image"][0].numpy() % 100) // 10  # of the images, in objects and around them
        y = int((numbers[:, 0] == 0).sum())
        x = int((numbers[0] == 0).sum())
        expected = 2 * (np.arange(24)[:, None] >= y) + (np.arange(32) >= x)
        assert np.array_equal(numbers, expected)
        assert 6 <= y <= 18
        assert 8 <= x <= 24
        centres.add((y, x))
    assert len(centres) > 10


def test_grey_where_a_mosaic_has_no_image(records, still, tmp_path):
    """The second image, at the upper right, is smaller than its place, and touches the point where all four meet."""
    still.INPUT.MOSAIC.PROB = 1.0
    made = records()
    Image.fromarray(np.full((2, 3), 15, np.uint8)).save(tmp_path / "small.png")
    made[1].update(file_name=str(tmp_path / "small.png"), height=2, width=3, annotations=[])
    (tmp_path / "3.png").write_bytes(b"broken")
    others = iter([made[1], made[3], made[2], *[made[3]] * 5])
    mapped = MixingMapper(still).mixed(made[0], lambda: next(others))
    image = mapped["image"][0]
    x = int((image[0] != GREY).sum())
    y = int((image[:, 0] // 10 % 10 == 0).sum())
    expected = torch.full((24, 32), GREY)
    expected[y - 2 : y, x : x + 3] = 15
    assert torch.equal(image[:y, x:].int(), expected[:y, x:].int())
    assert (image[y:, :x] // 10 % 10 == 2).all()  # drawn again instead of the broken one
    assert (image[y:, x:] == GREY).all()  # only broken ones are drawn
    assert list(others) == []


def test_crowds_are_neither_pasted_nor_learnt(records, still):
    still.INPUT.COPY_PASTE = still.INPUT.MOSAIC.PROB = 1.0
    made = records(iscrowd=1)
    mapped = MixingMapper(still).mixed(made[0], lambda: made[1])
    assert len(mapped["instances"]) == 0
    assert set(np.unique(mapped["basis_sem"])) <= {0, 1, 2}  # painted there as in other samples
    still.INPUT.MOSAIC.PROB = 0.0
    mapped = MixingMapper(still).mixed(made[0], lambda: made[1])
    assert set(np.unique(mapped["image"])) == {5, 105}


def test_a_random_subset_is_pasted(records, still):
    still.INPUT.COPY_PASTE = 1.0
    under, over = records(2)
    under["annotations"] = []
    first, mapper = over["annotations"][0], MixingMapper(still)
    polygons = [[[float(x), 4.0, x + 2.0, 4.0, x + 2.0, 8.0, float(x), 8.0]] for x in range(2, 10, 2)]
    over["annotations"] = [{**first, "segmentation": p, "category_id": i} for i, p in enumerate(polygons)]
    chosen = []
    for seed in range(80):
        np.random.seed(seed)
        chosen.append(tuple(mapper.mixed(under, lambda: over)["instances"].gt_classes.tolist()))
    counts = np.bincount([len(x) for x in chosen], minlength=5)
    assert counts[0] == 0
    assert counts[1:].min() > 9  # 20 of each are expected
    assert all(list(x) == sorted(x) for x in chosen)
    assert np.bincount(list(itertools.chain(*chosen))).min() > 35  # 50


def test_deep_images_share_a_range(records, still):
    """12 bits: value 16 v becomes v."""
    still.INPUT.COPY_PASTE, still.INPUT.VALUE_RANGE = 1.0, (0, 4095)
    made = records(deep=True)
    for seed in range(4):
        np.random.seed(seed)
        check_agreement(MixingMapper(still).mixed(made[0], lambda: made[3]))


def test_boxes_without_masks(records, still):
    still.INPUT.MOSAIC.PROB, still.MODEL.MASK_ON = 1.0, False
    still.MODEL.META_ARCHITECTURE = "FCOSDetector"
    made = records()
    for record in made:
        record["annotations"][0].pop("segmentation")
    np.random.seed(0)
    mapped = MixingMapper(still).mixed(made[0], lambda: made[1])
    assert len(mapped["instances"])
    for (x0, y0, x1, y1), label in zip(mapped["instances"].gt_boxes.tensor.int(), mapped["instances"].gt_classes):
        assert (mapped["image"][0, y0:y1, x0:x1] == 105 + 10 * label).all()


@pytest.fixture
def mixing(cfg, shapes):
    cfg.DATASETS.TRAIN = (shapes,)
    cfg.MODEL.BASIS_MODULE.LOSS_ON = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (40, 56)
    cfg.INPUT.COPY_PASTE = cfg.INPUT.MOSAIC.PROB = 0.9
    cfg.INPUT.COLOR_JITTER.BRIGHTNESS = cfg.INPUT.COLOR_JITTER.HUE = 0.3
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER, cfg.SOLVER.ACCUMULATE, cfg.INPUT.CLOSING_PHASE = 4, 2, 0.25
    return cfg


def tensors(batches):
    return [
        (x["image"], x["basis_sem"], x["instances"].gt_boxes.tensor, x["instances"].gt_masks.tensor)
        for batch in batches
        for x in batch
    ]


def same(a, b):
    return [all(map(torch.equal, x, y)) if x[0].shape == y[0].shape else False for x, y in zip(a, b)]


def test_resumed_streams_are_the_same_and_the_closing_phase_is_plain(mixing):
    """Four iterations of two batches of two images: the last iteration is not mixed."""
    assert mixed_batches(mixing) == 6
    whole = tensors(itertools.islice(build_train_loader(mixing), 8))
    mixing.DATALOADER.NUM_WORKERS = 2
    assert all(same(tensors(itertools.islice(build_train_loader(mixing, start_iteration=3), 5)), whole[6:]))
    mixing.DATALOADER.NUM_WORKERS = 0
    plain = same(whole, tensors(itertools.islice(build_train_loader(unmixed(mixing)), 8)))
    assert plain[12:] == [True] * 4
    assert sum(plain[10:12]) < 2
    assert sum(plain[:12]) < 4  # 0.12 are expected


@pytest.mark.parametrize(("share", "batches"), [(0.0, 8), (0.125, 8), (0.13, 6), (0.5, 4), (1.0, 0)])
def test_the_closing_phase_is_a_rounded_number_of_iterations(mixing, share, batches):
    mixing.INPUT.CLOSING_PHASE = share
    assert mixed_batches(mixing) == batches
    assert mixed_batches(unmixed(mixing)) == 0


def test_a_broken_image_is_reported_when_its_turn_comes(mixing, shapes, monkeypatch, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"broken")
    dicts = DatasetCatalog.get(shapes)[:3]
    dicts.append({**dicts[0], "file_name": str(tmp_path / "broken.png")})
    monkeypatch.setitem(DatasetCatalog.data, shapes, lambda: dicts)
    samples = build_train_loader(mixing)._loader.dataset
    for position in range(4):
        assert samples[0, position, 0][1] == []
        mapped, errors = samples[3, position, 0]
        assert {file for file, _ in errors} == {dicts[3]["file_name"]}
        assert mapped["file_name"] in {record["file_name"] for record in dicts[:3]}


def test_panoptic_data_is_refused(mixing, shapes, monkeypatch):
    dicts = [{**record, "sem_seg_file_name": "labels.png"} for record in DatasetCatalog.get(shapes)]
    monkeypatch.setitem(DatasetCatalog.data, shapes, lambda: dicts)
    with pytest.raises(
        ConfigError, match=r"^INPUT\.COPY_PASTE and INPUT\.MOSAIC\.PROB must be 0 for tiny_shapes: .*\.$"
    ):
        build_train_loader(mixing)
    build_train_loader(unmixed(mixing))


def test_copy_paste_needs_masks(mixing):
    check_config(mixing)
    mixing.MODEL.META_ARCHITECTURE, mixing.MODEL.MASK_ON = "FCOSDetector", False
    with pytest.raises(ConfigError, match=r"^INPUT\.COPY_PASTE is 0\.9; it needs masks: set MODEL\.MASK_ON True\.$"):
        check_config(mixing)
