import itertools
import json
import logging
import pickle
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm
from PIL import Image

from instseg_d2.data import build_test_loader, build_train_loader
from instseg_d2.data.loader import TrainLoader
from instseg_d2.data.samples import BatchIndices, seeded
from instseg_d2.errors import DatasetError, ImageError


@pytest.fixture
def train_cfg(cfg, shapes):
    cfg.DATASETS.TRAIN = (shapes,)
    cfg.DATASETS.TEST = (shapes,)
    cfg.MODEL.BASIS_MODULE.LOSS_ON = True
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.MASK_FORMAT = "bitmask"
    return cfg


def take(loader, count):
    return list(itertools.islice(loader, count))


def names(batches):
    return [[sample["file_name"] for sample in batch] for batch in batches]


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(itertools.chain(*a), itertools.chain(*b)):
        assert x["file_name"] == y["file_name"]
        assert torch.equal(x["image"], y["image"])
        assert torch.equal(x["basis_sem"], y["basis_sem"])
        assert torch.equal(x["instances"].gt_boxes.tensor, y["instances"].gt_boxes.tensor)
        assert torch.equal(x["instances"].gt_classes, y["instances"].gt_classes)
        assert torch.equal(x["instances"].gt_masks.tensor, y["instances"].gt_masks.tensor)


@pytest.mark.parametrize("grouping", [True, False])
def test_resumed_stream_is_bit_identical_with_any_workers(train_cfg, grouping):
    train_cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    whole = take(build_train_loader(train_cfg), 12)  # over one epoch of 24 images
    for workers, start in ((0, 5), (2, 7), (2, 0)):
        train_cfg.DATALOADER.NUM_WORKERS = workers
        assert_same(take(build_train_loader(train_cfg, start_iteration=start), 12 - start), whole[start:])


def test_other_seeds_give_other_streams(train_cfg):
    first = take(build_train_loader(train_cfg), 4)
    assert names(first) == names(take(build_train_loader(train_cfg, seed=11), 4))
    assert names(first) != names(take(build_train_loader(train_cfg, seed=12), 4))
    train_cfg.SEED = -1
    loader = build_train_loader(train_cfg)
    assert loader.seed >= 0
    assert_same(take(loader, 2), take(build_train_loader(train_cfg, seed=loader.seed), 2))


def test_the_same_image_is_augmented_anew(train_cfg):
    train_cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    train_cfg.SOLVER.IMS_PER_BATCH = 1
    samples = [batch[0] for batch in take(build_train_loader(train_cfg), 48)]
    by_file = {}
    for sample in samples:
        by_file.setdefault(sample["file_name"], []).append(sample["image"])
    changed = [a.shape != b.shape or not torch.equal(a, b) for a, b, *_ in by_file.values()]
    assert np.mean(changed) > 0.8


def test_every_epoch_holds_every_image_once(train_cfg):
    train_cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    images = sorted(d["file_name"] for d in DatasetCatalog.get("tiny_shapes") if d["annotations"])
    size = len(images)
    served = list(itertools.chain(*names(take(build_train_loader(train_cfg), 16))))
    assert size < len(served) == 48
    assert sorted(served[:size]) == sorted(served[size : 2 * size]) == images
    assert served[:size] != served[size : 2 * size]


def test_batches_hold_one_orientation(train_cfg):
    loader = build_train_loader(train_cfg)
    wide = [[s["width"] > s["height"] for s in batch] for batch in take(loader, 16)]
    assert all(len(set(batch)) == 1 for batch in wide)
    assert {batch[0] for batch in wide} == {True, False}


def test_groups_keep_the_order_and_unknown_sizes_stay_together():
    groups = ["a", "b", "unknown", "a", "b", "a", "unknown", "a"]
    batches = list(BatchIndices(range(8), 2, groups))
    assert batches == [
        [(0, 0, 0), (3, 3, 0)],
        [(1, 1, 1), (4, 4, 1)],
        [(2, 2, 2), (6, 6, 2)],
        [(5, 5, 3), (7, 7, 3)],
    ]
    assert list(BatchIndices(range(8), 2, groups, start_iteration=2)) == batches[2:]
    assert list(BatchIndices(range(5), 2)) == [[(0, 0, 0), (1, 1, 0)], [(2, 2, 1), (3, 3, 1)]]


def shorter_sides(batches):
    return [{min(sample["image"].shape[1:]) for sample in batch} for batch in batches]


def test_a_batch_shares_its_size(train_cfg, monkeypatch):
    train_cfg.INPUT.MIN_SIZE_TRAIN = (96, 128, 160)
    mixed = shorter_sides(take(build_train_loader(train_cfg), 12))
    assert max(map(len, mixed)) > 1
    train_cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = "batch"
    shared = shorter_sides(take(build_train_loader(train_cfg), 12))
    assert all(len(sides) == 1 for sides in shared)
    assert set.union(*shared) == {96, 128, 160}
    assert shorter_sides(take(build_train_loader(train_cfg, start_iteration=5), 7)) == shared[5:]
    # other images, the same sizes
    train_cfg.SOLVER.IMS_PER_BATCH = 6
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "get_rank", lambda: 1)
    assert shorter_sides(take(build_train_loader(train_cfg), 12)) == shared


def test_images_of_unknown_size_are_served(train_cfg, shapes, monkeypatch):
    dicts = DatasetCatalog.get(shapes)
    for record in dicts:
        record.pop("width"), record.pop("height")
    monkeypatch.setitem(DatasetCatalog.data, shapes, lambda: dicts)
    batch = take(build_train_loader(train_cfg), 1)[0]
    assert all(sample["height"] > 200 and sample["width"] > 200 for sample in batch)


def test_processes_share_the_images(train_cfg, monkeypatch):
    train_cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    train_cfg.SOLVER.IMS_PER_BATCH = 1
    alone = names(take(build_train_loader(train_cfg), 12))
    train_cfg.SOLVER.IMS_PER_BATCH = 2
    shared = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_world_size", lambda: 2)
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        batches = take(build_train_loader(train_cfg), 6)
        assert {len(batch) for batch in batches} == {1}
        shared.append(names(batches))
    assert [batch for pair in zip(*shared) for batch in pair] == alone


def test_random_state_of_the_process_is_left_alone(train_cfg):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    take(build_train_loader(train_cfg), 2)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


def test_seeded():
    def draw(*entropy):
        with seeded(*entropy):
            return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    values = {draw(1, 2, 3), draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)}
    assert len(values) == 4
    state = random.getstate()
    with seeded(0):
        assert random.getstate() != state
    assert random.getstate() == state


def test_workers_can_be_started_by_pickling(train_cfg):
    """As on systems that do not fork."""
    samples = build_train_loader(train_cfg)._loader.dataset
    place, *_ = next(iter(build_train_loader(train_cfg)._loader.batch_sampler))
    copy = pickle.loads(pickle.dumps(samples))
    assert_same([[copy[place][0]]], [[samples[place][0]]])


def test_repeat_factors(train_cfg, registered, shapes_folder, tmp_path):
    content = json.loads((shapes_folder / "train.json").read_text())
    rare = content["images"][0]["id"]
    for annotation in content["annotations"]:
        annotation["category_id"] = 13 if annotation["image_id"] == rare else 1
    path = tmp_path / "rare.json"
    path.write_text(json.dumps(content))
    train_cfg.DATASETS.TRAIN = (registered("rare_shapes", path, shapes_folder / "images"),)
    train_cfg.DATALOADER.SAMPLER_TRAIN = "RepeatFactorTrainingSampler"
    train_cfg.DATALOADER.REPEAT_THRESHOLD = 0.4  # one of 24 images: repeated sqrt(0.4 * 24) = 3.1 times
    batches = take(build_train_loader(train_cfg), 18)
    served = list(itertools.chain(*names(batches)))
    assert sum(name.endswith(content["images"][0]["file_name"]) for name in served) >= 5
    assert_same(take(build_train_loader(train_cfg, start_iteration=15), 3), batches[15:])


def test_batch_must_divide(train_cfg, monkeypatch):
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match=r"IMS_PER_BATCH is 3; it must be a multiple of the 2 processes"):
        build_train_loader(train_cfg)


def test_without_a_training_set(train_cfg):
    train_cfg.DATASETS.TRAIN = ()
    with pytest.raises(DatasetError, match=r"DATASETS\.TRAIN is empty"):
        build_train_loader(train_cfg)


def test_data_sets_that_cannot_be_used(train_cfg, registered, coco_files):
    train_cfg.DATASETS.TRAIN = ("tiny_shape",)
    with pytest.raises(DatasetError, match=r"no data set named tiny_shape \(similar: tiny_shapes"):
        build_train_loader(train_cfg)
    with pytest.raises(DatasetError, match="no data set named nothing_like_it"):
        build_test_loader(train_cfg, "nothing_like_it")
    train_cfg.DATASETS.TRAIN = (registered("no_objects", *coco_files(lambda c: c["annotations"].clear())),)
    with pytest.raises(DatasetError, match="no_objects: No valid data"):
        build_train_loader(train_cfg)


@pytest.fixture
def damaged(registered, shapes_folder, tmp_path):
    """damage(n) -> name of a copy of the small set in which n images with objects are unreadable."""

    def damage(count):
        folder = tmp_path / "damaged"
        shutil.copytree(shapes_folder, folder)
        content = json.loads((folder / "train.json").read_text())
        used = {annotation["image_id"] for annotation in content["annotations"]}
        images = [image for image in content["images"] if image["id"] in used]
        for image in images[:count]:
            (folder / "images" / image["file_name"]).write_bytes(b"damaged")
        return registered("damaged_shapes", folder / "train.json", folder / "images"), images[0]["file_name"]

    return damage


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_replaced_with_a_warning(train_cfg, damaged, caplog, workers):
    name, file_name = damaged(1)
    train_cfg.DATASETS.TRAIN = (name,)
    train_cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_train_loader(train_cfg)
    with caplog.at_level(logging.WARNING, logger="instseg_d2"):
        batches = take(loader, 20)
    warnings = [r.getMessage() for r in caplog.records if r.name == "instseg_d2.data.loader"]
    assert len(warnings) == 1
    assert file_name in warnings[0]
    assert "image 1 of at most 1" in warnings[0]
    assert all(len(batch) == 3 for batch in batches)
    assert not any(file.endswith(file_name) for batch in names(batches) for file in batch)
    assert [path.endswith(file_name) for path in loader.bad_files] == [True]
    train_cfg.DATALOADER.NUM_WORKERS = 2 - workers
    assert_same(take(build_train_loader(train_cfg, start_iteration=9), 11), batches[9:])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [2, 24])
def test_too_many_broken_images_stop_the_training(train_cfg, damaged, workers, count):
    train_cfg.DATASETS.TRAIN = (damaged(count)[0],)
    train_cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(DatasetError) as caught:
        take(build_train_loader(train_cfg), 30)
    message = str(caught.value)
    assert message.startswith("training stops: 2 images are unusable, more than the 1 (1 %) allowed")
    assert "cannot be read as an image" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("world_size", "share", "stops"),
    [
        (1, 0.009, False),
        (1, 0.012, True),
        (8, 0.005, False),  # in the long run each process meets all 20
        (8, 0.04, True),
    ],
)
def test_about_one_percent_of_all_images_is_tolerated(monkeypatch, world_size, share, stops):
    """Process 0 of several draws its share of 12 epochs of 4000 images; too many bad ones stop it in the first."""
    monkeypatch.setattr(comm, "get_world_size", lambda: world_size)
    size = 4000
    generator = np.random.default_rng(2)
    bad = set(generator.permutation(size)[: int(share * size)].tolist())
    loader = TrainLoader(SimpleNamespace(seed=0, dataset=range(size)), [], 0)
    epochs = [generator.permutation(size)[::world_size].tolist() for _ in range(12)]
    batches = [[("sample", [(str(i), "broken")] if i in bad else [])] for epoch in epochs for i in epoch]
    monkeypatch.setattr("instseg_d2.data.loader._drawn", lambda _: batches)
    if stops:
        with pytest.raises(
            DatasetError, match=r"images are unusable, more than the \d+ \((1 %|about 1 %, in one process)\) allowed"
        ):
            take(loader, size // world_size)
    else:
        assert len(take(loader, len(batches))) == len(batches)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_faulty_mask_stops_the_training_with_its_message(train_cfg, shapes, monkeypatch, workers):
    dicts = DatasetCatalog.get(shapes)
    for record in dicts:
        for annotation in record["annotations"]:
            annotation.pop("segmentation")
    monkeypatch.setitem(DatasetCatalog.data, shapes, lambda: dicts)
    train_cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(DatasetError, match=r"^training stops: .*an annotation has no mask, but .* needs one\.$"):
        take(build_train_loader(train_cfg), 1)


def test_errors_of_the_code_are_not_hidden(train_cfg):
    def broken(_):
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        take(build_train_loader(train_cfg, mapper=broken), 1)


@pytest.mark.parametrize("workers", [0, 1])
def test_test_loader(train_cfg, shapes, workers):
    train_cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_test_loader(train_cfg, shapes)
    assert len(loader) == 24  # images without objects as well
    batches = list(loader)
    assert [len(batch) for batch in batches] == [1] * 24
    dicts = DatasetCatalog.get(shapes)
    for (sample,), record in zip(batches, dicts):
        assert sample["image_id"] == record["image_id"]
        assert (sample["height"], sample["width"]) == (record["height"], record["width"])
        assert min(sample["image"].shape[1:]) == 160
        assert "instances" not in sample
        assert "annotations" not in sample
    assert names(loader) == names(batches)  # it can be read again
    assert len(InferenceSampler(24)) == len(loader)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_stops_the_test(train_cfg, damaged, workers):
    name, file_name = damaged(1)
    train_cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(ImageError, match=f"{file_name} cannot be read as an image") as caught:
        list(build_test_loader(train_cfg, name))
    assert "\n" not in str(caught.value)


def test_the_loaders_find_one_range_of_values_for_all_images(registered, coco_files, cfg):
    path, images = coco_files()
    for name, peak in (("a.png", 4000), ("b.png", 200)):
        size = Image.open(images / name).size
        Image.fromarray(np.linspace(0, peak, size[0] * size[1]).reshape(size[::-1]).astype(np.uint16)).save(
            images / name
        )
    name = registered("deep", path, images)
    cfg.DATASETS.TRAIN = (name,)
    cfg.INPUT.MIN_SIZE_TEST = 0
    brightest = {Path(s["file_name"]).name: int(s["image"].max()) for (s,) in build_test_loader(cfg, name)}
    assert brightest == {"a.png": 4000 >> 4, "b.png": 200 >> 4}
    for sample in next(iter(build_train_loader(cfg))):
        assert int(sample["image"].max()) <= brightest[Path(sample["file_name"]).name]
