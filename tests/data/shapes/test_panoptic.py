"""The panoptic shapes: the three kinds of labels agree; the registered records; the mapper's output."""

import json

import cv2
import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from instseg_d2.data import InstanceDatasetMapper, class_names, make_shapes_panoptic
from instseg_d2.data.segmentations import to_rle
from instseg_d2.data.shapes import panoptic as shapes_panoptic
from instseg_d2.data.shapes.panoptic import IGNORE_LABEL, STUFF_CATEGORY_IDS, paint_stuff
from instseg_d2.errors import DatasetError

NUM_IMAGES = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panoptic")
    make_shapes_panoptic(folder, "train", NUM_IMAGES, seed=4)
    return folder


@pytest.fixture
def name(folder):
    shapes_panoptic.register_split("tiny_panoptic", folder, "train", NUM_IMAGES, 4)
    yield "tiny_panoptic"
    DatasetCatalog.remove("tiny_panoptic")
    MetadataCatalog.pop("tiny_panoptic")


def read_ids(path):
    """Segment ids (H, W): red + 256 green + 256^2 blue."""
    blue, green, red = cv2.imread(str(path)).astype(int).transpose(2, 0, 1)
    return red + 256 * green + 256**2 * blue


def test_instances_semantic_map_and_panoptic_map_agree(folder):
    instances = json.loads((folder / "train.json").read_text())
    panoptic = json.loads((folder / "panoptic_train.json").read_text())
    is_thing = {c["id"]: c["isthing"] for c in panoptic["categories"]}
    assert sum(is_thing.values()) == 6
    assert len(panoptic["annotations"]) == len(panoptic["images"]) == NUM_IMAGES
    labels_seen = set()
    for image, annotation in zip(instances["images"], panoptic["annotations"]):
        assert annotation["image_id"] == image["id"]
        size = (image["height"], image["width"])
        ids = read_ids(folder / "panoptic_train" / annotation["file_name"])
        labels = cv2.imread(str(folder / "stuff_train" / annotation["file_name"]), cv2.IMREAD_UNCHANGED)
        assert ids.shape == labels.shape == size
        labels_seen |= set(np.unique(labels).tolist())
        assert np.array_equal(ids == 0, labels == IGNORE_LABEL)
        segments = annotation["segments_info"]
        assert sorted(np.unique(ids[ids > 0]).tolist()) == sorted(s["id"] for s in segments)
        objects = [a for a in instances["annotations"] if a["image_id"] == image["id"]]
        assert [s["category_id"] for s in segments if is_thing[s["category_id"]]] == [a["category_id"] for a in objects]
        for segment, thing in zip(segments, [*objects, *[None] * len(STUFF_CATEGORY_IDS)]):
            mask = ids == segment["id"]
            assert segment["area"] == mask.sum()
            rows, columns = np.nonzero(mask)
            x, y, w, h = segment["bbox"]
            assert (x, y, x + w, y + h) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            if thing is None:
                assert (labels[mask] == STUFF_CATEGORY_IDS.index(segment["category_id"]) + 1).all()
            else:
                assert (labels[mask] == 0).all()
                drawn = mask_util.decode(to_rle(thing["segmentation"], *size)).astype(bool)
                assert (drawn & mask).sum() > 0.85 * (drawn | mask).sum()
    assert labels_seen == {0, 1, 2, 3, 4, IGNORE_LABEL}


def test_ground_varies():
    labels = [paint_stuff(np.random.default_rng(i), 60, 80)[1] for i in range(40)]
    counts = [len(np.unique(x)) for x in labels]
    assert set(counts) == {1, 2, 3}
    assert all(min(np.unique(x, return_counts=True)[1]) > 0.05 * x.size for x in labels)
    assert 0 < np.mean([(x == IGNORE_LABEL).any() for x in labels]) < 0.4


def test_drawn_once_and_the_same_again(folder, tmp_path):
    make_shapes_panoptic(tmp_path, "train", 3, seed=4)
    written = [p for p in tmp_path.rglob("*.png") if p.parent.name != "images"]
    assert len(written) == 6
    for path in (*written, *(tmp_path / "images").iterdir()):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes()
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    make_shapes_panoptic(tmp_path, "train", 3, seed=4)
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.suffix != ".lock"} == {
        p: t for p, t in times.items() if p.suffix != ".lock"
    }


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"file.*cannot be written.*INSTSEG_CACHE"):
        make_shapes_panoptic(tmp_path / "file", "train", 1, seed=1)


def test_records_and_metadata(name, folder):
    records = DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    assert len(records) == NUM_IMAGES
    assert records[0]["sem_seg_file_name"] == str(folder / "stuff_train" / "train_00001.png")
    assert class_names(name) == ["circle", "square", "triangle", "star", "ring", "cross"]
    assert metadata.evaluator_type == "coco_panoptic_seg"
    assert metadata.stuff_classes == ["things", "sky", "grass", "water", "bricks"]
    assert metadata.stuff_dataset_id_to_contiguous_id == {0: 0, 21: 1, 34: 2, 55: 3, 89: 4}
    assert {f"shapes_panoptic_{split}" for split in ("train", "val")} <= set(DatasetCatalog.list())


def test_the_mapper_gives_both(name, cfg):
    mapper = InstanceDatasetMapper(cfg, True)
    for record in DatasetCatalog.get(name)[:6]:
        sample = mapper(record)
        assert sample["sem_seg"].shape == sample["image"].shape[1:]
        things = sample["instances"].gt_masks
        if len(things) and hasattr(things, "tensor"):
            # The outline of a mask may be off by a pixel.
            assert (sample["sem_seg"][things.tensor.any(0)] == 0).float().mean() > 0.9


def test_a_semantic_map_of_another_size_is_named(name, cfg):
    first, second = DatasetCatalog.get(name)[:2]
    assert (first["height"], first["width"]) != (second["height"], second["width"])
    record = {**first, "sem_seg_file_name": second["sem_seg_file_name"]}
    with pytest.raises(DatasetError, match=rf"train_00002\.png has {second['width']} x {second['height']} pixels"):
        InstanceDatasetMapper(cfg, True)(record)
