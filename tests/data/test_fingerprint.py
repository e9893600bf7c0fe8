"""The fingerprint of a data set, against values derived by hand, and the split of images for validation."""

import json

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from instseg_d2.data import register_coco
from instseg_d2.data.coco_file import read_json
from instseg_d2.data.fingerprint import fingerprint_of, take_fingerprint
from instseg_d2.data.split import held_out, lacking, write_split
from tests.coco_sets import write_set
from tests.fingerprints import record


def test_by_hand():
    """
    Sizes are 10, 20, 20 and 40 pixels, of 100, 100, 100 and 200. The first two boxes overlap in one pixel, the third
    touches the second only at its side, the fourth is in another image, and the crowd covers everything.
    """
    crowd = {"bbox": [0, 0, 200, 100], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 1}
    first = record(200, 100, [(0, 0, 10, 10, 0), (9, 9, 40, 10, 1), (49, 9, 20, 20, 1)])
    first["annotations"].append(crowd)
    found = fingerprint_of([first, record(200, 300, [(0, 0, 20, 80, 1)]), record(50, 50, [])], ["a", "b", "c"])
    assert (found.num_images, found.num_empty, found.num_objects, found.crowds) == (3, 1, 4, 1)
    assert (found.mean_objects, found.q99_objects, found.max_objects) == (2.0, 3, 3)
    # The roots of 20000 / 3 and 60000.
    assert (found.spacing.q50, found.least_spacing, found.length.q50) == (163.3, 81.6, 30.0)
    assert found.classes == {"a": 1, "b": 3, "c": 0}
    assert found.class_images == {"a": 1, "b": 2, "c": 0}
    assert found.touching == 0.5
    assert (found.size.q50, found.relative_size.q50, found.relative_length.q50) == (20.0, 0.2, 0.3)
    assert (found.image_side.q50, found.image_aspect.q50, found.aspect.q50) == (100.0, 1.5, 2.5)
    assert json.loads(json.dumps(found.as_dict()))["size"]["q50"] == 20.0
    assert "4 objects of 3 classes, 1 crowds; 2 in an image, at most 3; 50% overlap another one's box" in found.lines()


def test_touching_is_found_between_all_pairs():
    """Ten boxes in a row; the first and the last are the only ones that overlap."""
    boxes = [(20 * i, 0, 10, 10, 0) for i in range(9)] + [(5, 5, 10, 10, 0)]
    assert fingerprint_of([record(300, 100, boxes)] * 2, ["a"]).touching == 0.2


def test_pixels(tmp_path):
    """Grey, coloured, deep, and colour in a lossy format; an unreadable file does not count."""
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (32, 32, 1), np.uint8).repeat(3, 2)
    colour = rng.integers(0, 256, (32, 32, 3), np.uint8)
    for name, pixels in (("a.png", grey), ("b.png", colour), ("c.jpg", colour), ("d.jpg", grey)):
        Image.fromarray(pixels).save(tmp_path / name)
    records = [record(32, 32, [(0, 0, 9, 9, 0)], tmp_path / name) for name in ("a.png", "b.png", "c.jpg", "d.jpg", "x")]
    found = fingerprint_of(records, ["a"])
    assert (found.deep, found.colour, found.photos) == (False, 0.5, 0.25)
    Image.fromarray(grey[..., 0].astype(np.uint16) * 256).save(tmp_path / "deep.png")
    assert fingerprint_of([record(32, 32, [(0, 0, 9, 9, 0)], tmp_path / "deep.png")], ["a"]).deep


def test_each_class_is_divided():
    """A fifth of 100 images: of those with the common class, of the ten with a rare one, and of the empty ones."""
    classes = [{"common"}] * 80 + [{"common", "rare"}] * 10 + [set()] * 10
    drawn = held_out(classes, 0.2)
    assert drawn == held_out(classes, 0.2) == sorted(set(drawn))
    assert [len([i for i in drawn if low <= i < high]) for low, high in ((0, 80), (80, 90), (90, 100))] == [16, 2, 2]
    assert drawn[:16] != list(range(16))


def test_neither_part_is_empty():
    for number, share, count in ((2, 0.01, 1), (2, 0.99, 1), (3, 0.2, 1), (8, 0.2, 2), (5, 1.0, 4)):
        assert len(held_out([{0}, *[{1}] * (number - 1)], share)) == count


def test_a_split_data_set(tmp_path):
    path, images = write_set(tmp_path, [(1, 1, 20, 20)] * 10)
    register_coco("fingerprint_split", path, images)
    content = read_json(path)[0]
    share, files, lacking_names = write_split("fingerprint_split", tmp_path / "split")
    assert (share, lacking_names) == (0.2, [])
    parts = [read_json(file)[0] for file in files]
    assert [len(part["images"]) for part in parts] == [8, 2]
    for key in ("images", "annotations"):
        assert sorted(parts[0][key] + parts[1][key], key=lambda x: x["id"]) == content[key]
    assert all({x["image_id"] for x in part["annotations"]} == {x["id"] for x in part["images"]} for part in parts)
    assert {x["category_id"] for x in parts[1]["annotations"]} == {1, 2}
    assert take_fingerprint(["fingerprint_split"]).classes == {"a": 5, "b": 5}
    assert MetadataCatalog.get("fingerprint_split").json_file == path


def test_each_split_has_its_own_files(tmp_path):
    """Other data beside an earlier split leaves it alone, also if its file is the same; the same data is split once."""
    found = []
    for number, name in ((10, "first"), (6, "other"), (7, "first")):
        path, images = write_set(tmp_path, [(1, 1, 20, 20)] * number, name=name)
        register_coco("fingerprint_own", path, images)
        found.append(write_split("fingerprint_own", tmp_path / "split")[1])
        assert write_split("fingerprint_own", tmp_path / "split")[1] == found[-1]
    assert [[len(read_json(file)[0]["images"]) for file in files] for files in found] == [[8, 2], [5, 1], [6, 1]]


def test_small_sets_keep_what_training_needs():
    """The only image with objects is trained on; of two, one is for validation."""
    for image in range(3):
        classes = [{1} if i == image else set() for i in range(3)]
        assert held_out(classes, 0.2) != [image]
    drawn = held_out([{1}, {1}, *[set()] * 8], 0.2)
    assert len(drawn) == 2
    assert len({0, 1}.intersection(drawn)) == 1


def test_both_parts_have_objects():
    """Also where every class is in one image only; training then lacks that of the image drawn."""
    for classes, share in (
        ([{0}, {1}, *[set()] * 8], 0.2),
        ([{0}, {1}, {2}, *[set()] * 30], 0.1),
        ([{0}, {0}, set(), set()], 0.75),
        ([{0}, {0, 1}], 0.5),
    ):
        drawn = held_out(classes, share)
        assert len(drawn) == round(share * len(classes))
        annotated = {image for image, names in enumerate(classes) if names}
        assert annotated.intersection(drawn)
        assert annotated.difference(drawn)
        shared = set().union(*(classes[image] for image in annotated.difference(drawn)))
        assert lacking(classes, drawn) == sorted(set().union(*(classes[image] for image in drawn)) - shared)
    assert lacking([{0}, {1}, {2, 1}], [0, 1]) == [0]
